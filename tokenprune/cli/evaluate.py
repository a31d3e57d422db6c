"""The command that runs benchmarks, through lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TokenpruneError, install
from ..outputs import check_output
from . import tables
from .interrupt import STARTS_ANEW, interrupted
from .options import (
    AttnOption,
    BudgetOption,
    DeviceOption,
    DtypeOption,
    FramesOption,
    ModelArgument,
    OverridesArgument,
    RecipeOption,
    read_dtype,
    read_recipe,
)


@interrupted(STARTS_ANEW)
def evaluate(
    model: ModelArgument,
    overrides: OverridesArgument = None,
    tasks: Annotated[str, typer.Option(help="lmms-eval's ids, such as pope,mme,textvqa_val; or pico.")] = ...,  # type: ignore[assignment]
    recipe: RecipeOption = None,
    budget: BudgetOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task; all without it.")] = None,
    include_path: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder with lmms-eval tasks of your own.")
    ] = None,
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for results.json and samples_TASK.jsonl.")
    ] = Path("runs/eval"),
    frames: FramesOption = 8,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Score a model on benchmarks with lmms-eval; with a recipe, pruned, and say how many visual tokens were kept."""
    built, wanted = read_recipe(recipe, overrides, budget)
    if (output / "results.json").exists():
        raise typer.BadParameter(f"{output} holds results already: name another folder", param_hint="--output")
    check_output(output, folder=True)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        from ..lab.evaluation import run, scores
    except ImportError as error:
        raise TokenpruneError(f"tokenprune eval needs lmms-eval ({error}): {install('eval')}") from error
    results = run.evaluate(
        names,
        output,
        limit,
        include_path,
        about={"model": model, "recipe": recipe, "overrides": overrides or [], "budget": budget},
        pretrained=model,
        recipe=built,
        budget=wanted,
        batch_size=batch_size,
        device=device,
        dtype=read_dtype(dtype),
        attn_implementation=attn,
        max_num_frames=frames,
    )
    if results is not None:  # the first of several processes
        tables.show("", scores.HEADER, scores.table(results), words=["metric"], keys=2)
        tables.say(f"results: {output / 'results.json'}")
