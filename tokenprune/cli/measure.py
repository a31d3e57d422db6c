"""Commands that measure: `bench` (what a recipe saves) and `sweep` (what it costs, over combinations of settings)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UnknownNameError
from ..outputs import check_output
from ..plan.shapes import PUBLISHED
from . import tables
from .interrupt import RESUMES, STARTS_ANEW, interrupted
from .options import (
    AttnOption,
    BudgetOption,
    DeviceOption,
    DtypeOption,
    OutputOption,
    RecipesOption,
    TrustOption,
    load_model,
    read_budget,
    read_dtype,
)

TASKS = ("pico",)


@interrupted(STARTS_ANEW)
def bench(
    model: Annotated[
        str | None, typer.Argument(help="A hub id, a local folder, or pico; not with --random-init.")
    ] = None,
    recipe: RecipesOption = ...,  # type: ignore[assignment]
    budget: BudgetOption = None,
    runs: Annotated[int, typer.Option(min=1, help="Rounds, after one to warm up.")] = 7,
    new_tokens: Annotated[int, typer.Option(min=2, help="Length of the answer.")] = 16,
    output: OutputOption = Path("bench"),
    random_init: Annotated[
        str | None, typer.Option(help=f"Random weights instead of a model: {', '.join(PUBLISHED)}.")
    ] = None,
    scale: Annotated[str, typer.Option(help="Share of that shape's width and depth, such as 1/8.")] = "1",
    text: Annotated[int, typer.Option(min=2, help="Text tokens of the prompt with --random-init.")] = 60,
    ecl: Annotated[int | None, typer.Option(min=1, help="Entropy Collapse Layer; by default it is found.")] = None,
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A picture of your own.")] = None,
    prompt: Annotated[str, typer.Option(help="The question about it.")] = "Describe the picture.",
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    trust_family: TrustOption = False,
) -> None:
    """Time, memory and FLOPs of one prompt without and with pruning, in turn: tower, prefill, decode."""
    if (model is None) == (random_init is None):
        raise typer.BadParameter("give a model or --random-init SHAPE, one of them", param_hint="MODEL")
    from ..lab import bench as benches

    wanted = read_budget(budget)
    check_output(output, folder=True)
    if random_init is not None:
        dtype = read_dtype(dtype)
        subject = benches.at_random(random_init, scale, text, ecl, attention=attn, dtype=dtype, device=device)
    else:
        subject = benches.of_a_picture(load_model(str(model), attn, dtype, device, trust_family), image, prompt, ecl)
    one = benches.Bench(subject.model, subject.inputs, new_tokens, subject.processor)
    with tables.bar() as progress:
        task = progress.add_task("rounds", total=one.rounds(runs))
        found = one.measure(recipe, runs=runs, budget=wanted, ecl=subject.ecl, done=lambda: progress.advance(task))
    settings = {
        "model": model or f"{random_init}, random weights" + (f", scale {scale}" if scale != "1" else ""),
        "visual tokens": one.visual,
        "text tokens": one.text,
        "new_tokens": new_tokens,
        "runs": runs,
        "budget": budget,
        **subject.settings(),
    }
    written = benches.save(found, output, settings)
    tables.show(str(settings["model"]), benches.HEADER, benches.table(found), words=["recipe"])
    tables.listed(written)


@interrupted(RESUMES)
def sweep(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Comma lists of values, such as prune.0.schedule.layer=1,2,3.", show_default=False),
    ] = None,
    recipe: RecipesOption = ...,  # type: ignore[assignment]
    budget: Annotated[str | None, typer.Option(help="A comma list of budgets, such as 1/2,1/3.")] = None,
    model: Annotated[str, typer.Option(help="A hub id, a local folder, or pico (the bundled model).")] = "pico",
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "pico",
    limit: Annotated[int, typer.Option(min=1, help="Questions of each kind.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes are drawn.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 64,
    output: OutputOption = Path("sweep"),
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    trust_family: TrustOption = False,
) -> None:
    """Accuracy, tokens and FLOPs of every combination of recipes, settings and budgets; a second run goes on."""
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    from ..lab import conditions
    from ..lab import sweep as sweeps

    wanted = sweeps.combinations(recipe, settings or [], budget)
    check_output(output, folder=True)
    loaded = load_model(model, attn, dtype, device, trust_family)
    known = {**conditions.of_rows("sweep", loaded), "model": model, "task": task, "limit": limit, "seed": seed}
    with tables.bar() as progress:
        bar = progress.add_task("combinations", total=len(wanted))
        answer = sweeps.Asking(loaded, limit, seed, batch, lambda share: progress.advance(bar, share))
        rows = []
        for row in sweeps.run(wanted, answer, output, known):
            rows.append(row)
            progress.update(bar, completed=len(rows))
    written = sweeps.save(rows, output, known)
    title = f"{model}: {limit} questions of each kind"
    tables.show(title, *sweeps.table(rows), words=("combination", "layers", "impossible"))
    tables.listed(written)
