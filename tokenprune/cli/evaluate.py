"""The command that runs benchmarks, through lmms-eval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TokenpruneError, install
from ..outputs import check_output
from . import tables
from .catalog import BudgetOption, OverridesArgument
from .interrupt import STARTS_ANEW, interrupted
from .run import AttnOption, DeviceOption, DtypeOption, ModelArgument, _dtype, chosen


@interrupted(STARTS_ANEW)
def evaluate(
    model: ModelArgument,
    overrides: OverridesArgument = None,
    tasks: Annotated[str, typer.Option(help="lmms-eval's ids, such as pope,mme,textvqa_val; or pico.")] = ...,  # type: ignore[assignment]
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="A recipe; without it nothing is pruned.")
    ] = None,
    budget: BudgetOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task; all without it.")] = None,
    include_path: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder with lmms-eval tasks of your own.")
    ] = None,
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for results.json and samples_TASK.jsonl.")
    ] = Path("runs/eval"),
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from each video.")] = 8,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Score a model on benchmarks with lmms-eval; with a recipe, pruned, and say how many visual tokens were kept."""
    built, wanted = chosen(recipe, overrides, budget)
    if (output / "results.json").exists():
        raise typer.BadParameter(f"{output} holds results already: name another folder", param_hint="--output")
    check_output(output, folder=True)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        from ..lab.evaluation import run
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
        dtype=_dtype(dtype),
        attn_implementation=attn,
        max_num_frames=frames,
    )
    if results is not None:  # the first of several processes
        tables.show("", HEADER, _rows(results), words=["metric"], keys=2)
        tables.say(f"results: {output / 'results.json'}")


HEADER = ["task", "metric", "score", "± stderr", "visual tokens", "average over the layers", "left"]


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row per metric of each task, and once per task its visual tokens."""
    rows = []
    for task, scores in results["results"].items():
        seen = results["tokenprune"]["visual"].get(task)
        counts = ["", "", ""]
        if seen and seen["visual_tokens"]:
            total, left = seen["visual_tokens"], seen["visual_average"]
            counts = [f"{total:.1f}", f"{left:.1f}", f"{left / total:.1%}"]
        name = task
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, (int, float)) or re.search(r"_stderr(_clt|_clustered)?$", metric):
                continue
            error = scores.get(f"{metric}_stderr,{filtered}")
            deviation = f"{error:.4f}" if isinstance(error, float) else ""
            label = metric if filtered in ("none", "") else f"{metric} ({filtered})"
            rows.append([name, label, f"{value:.4f}", deviation, *counts])
            name, counts = "", ["", "", ""]
    return rows
