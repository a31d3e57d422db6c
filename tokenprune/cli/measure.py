"""Commands that measure: `bench` (what a recipe saves) and `sweep` (what it costs, over combinations of settings)."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import outputs
from ..errors import UnknownNameError
from ..plan.cost import PUBLISHED
from . import tables
from .analyse import _settings
from .catalog import BudgetOption
from .interrupt import RESUMES, STARTS_ANEW, interrupted
from .run import AttnOption, DeviceOption, DtypeOption, _dtype

if TYPE_CHECKING:
    import torch

    from ..lab import sweep as sweeps
    from ..lab.pico.task import Task

OutputOption = Annotated[Path, typer.Option(file_okay=False, help="Folder for what is measured.")]
RecipesOption = Annotated[list[str], typer.Option("--recipe", "-r", help="A recipe; repeatable.")]

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
) -> None:
    """Time, memory and FLOPs of one prompt without and with pruning, in turn: tower, prefill, decode."""
    if (model is None) == (random_init is None):
        raise typer.BadParameter("give a model or --random-init SHAPE, one of them", param_hint="MODEL")
    import torch

    from ..amounts import read
    from ..lab import bench as benches
    from ..lab import random_models as shapes
    from ..lab.loading import load_model
    from ..lab.media import read_image
    from ..lab.pico import scenes

    wanted = read(budget) if budget is not None else None
    outputs.check_output(output, folder=True)
    lm: Any
    if random_init is not None:
        share = shapes.check(random_init, scale)
        ecl = ecl if ecl is not None else shapes.collapse_layer(random_init, share)
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = torch.float32 if _dtype(dtype) == "auto" and where == "cpu" else _torch_dtype(dtype)
        lm = shapes.build(random_init, share, kind, where, attn)
        inputs, processor = shapes.prompt(random_init, lm, text), None
    else:
        loaded = load_model(str(model), attn, _dtype(dtype), device)
        lm, processor = loaded.model, loaded.processor
        picture = read_image(image) if image is not None else next(scenes.held_out(0)).picture
        inputs = loaded.inputs(prompt, [picture])
    one = benches.Bench(lm, inputs, new_tokens, processor)
    with tables.bar() as progress:
        task = progress.add_task("rounds", total=one.rounds(runs))
        found = one.measure(recipe, runs=runs, budget=wanted, ecl=ecl, done=lambda: progress.advance(task))
    settings = {
        "model": model or f"{random_init}, random weights" + (f", scale {scale}" if scale != "1" else ""),
        "visual tokens": one.visual,
        "text tokens": one.text,
        "new_tokens": new_tokens,
        "runs": runs,
        "budget": budget,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "attention": lm.config.get_text_config()._attn_implementation,
        **machine(lm.device),
    }
    written = benches.save(found, output, settings)
    tables.show(str(settings["model"]), benches.HEADER, benches.table(found), words=["recipe"])
    _list(written)


def _torch_dtype(dtype: str) -> torch.dtype:
    import torch

    return torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)


def machine(device: torch.device) -> dict[str, Any]:
    """What numbers of time depend on."""
    import torch
    import transformers

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU of {os.cpu_count()} cores",
        "threads": None if gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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
) -> None:
    """Accuracy, tokens and FLOPs of every combination of recipes, settings and budgets; a second run goes on."""
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    from ..amounts import read
    from ..lab import sweep as sweeps
    from ..lab.loading import load_model
    from ..lab.pico.task import Task
    from ..registry import registry

    wanted = sweeps.combinations(recipe, settings or [], budget)
    outputs.check_output(output, folder=True)
    loaded = load_model(model, attn, _dtype(dtype), device)
    known = {
        **_settings("sweep", loaded, registry().adapter(loaded.model.config)),
        **{"model": model, "task": task, "limit": limit, "seed": seed},
    }
    asked: list[Task] = []
    rows = []
    with tables.bar() as progress:
        bar = progress.add_task("combinations", total=len(wanted))

        def answer(one: sweeps.Combination) -> Any:
            if not asked:  # not if every row is there
                asked.append(Task(loaded, limit, seed, batch))
            limited = read(one.budget) if one.budget is not None else None
            step = 1 / len(asked[0])
            return asked[0].answer(one.recipe, *one.settings, budget=limited, done=lambda: progress.advance(bar, step))

        for i, row in enumerate(sweeps.run(wanted, answer, output, known), start=1):
            rows.append(row)
            progress.update(bar, completed=i)
    written = sweeps.save(rows, output, known)
    title = f"{model}: {limit} questions of each kind"
    tables.show(title, *sweeps.table(rows), words=("combination", "layers", "impossible"))
    _list(written)


def _list(written: list[Path]) -> None:
    """What was written, and why there are no figures where there is no matplotlib."""
    from ..lab import plots

    for path in written:
        print(path)
    if (why := plots.missing()) is not None:
        tables.say(why, sys.stderr)
