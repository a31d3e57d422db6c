"""Options and arguments that commands share, each said once, and what reads them.

What reads them imports torch inside: help is answered without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..plan.shapes import LISTED, PUBLISHED

if TYPE_CHECKING:
    from ..amounts import Budget
    from ..lab.loading import Loaded
    from ..recipe import Recipe

DTYPES = ("auto", "float32", "bfloat16", "float16")

ModelArgument = Annotated[str, typer.Argument(help="A hub id, a local folder, or pico (the bundled model).")]
AttnOption = Annotated[str | None, typer.Option("--attn", help="Attention implementation, e.g. flash_attention_2.")]
DtypeOption = Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")]
DeviceOption = Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU if there is one.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-family", help="Leave out the check of a model type without an adapter of its own.")
]

RecipeArgument = Annotated[str, typer.Argument(help="A recipe name, name@preset, or a YAML file.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help="A recipe; without it nothing is pruned.")]
RecipesOption = Annotated[list[str], typer.Option("--recipe", "-r", help="A recipe; repeatable.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings such as prune.0.schedule.average=128.", show_default=False)
]
BudgetOption = Annotated[
    str | None, typer.Option(help="Rescale all keeps to this average over the layers: tokens (192) or a share (1/3).")
]

ShapeOption = Annotated[str, typer.Option(help=f"{', '.join(PUBLISHED)} and more ({LISTED}), or a local config.json.")]
TextOption = Annotated[int, typer.Option(min=0, help="Text tokens of the prompt.")]
VisualOption = Annotated[int | None, typer.Option(min=1, help="Visual tokens of the prompt; by default as the shape.")]
EclOption = Annotated[int | None, typer.Option(help="Entropy Collapse Layer, if none is shipped for the shape.")]

FramesOption = Annotated[int, typer.Option(min=1, help="Frames taken from each video.")]
LayersOption = Annotated[str | None, typer.Option(help="Such as 1,2,16.", show_default=False)]
RowsOption = Annotated[Path, typer.Option(file_okay=False, help="Folder of the results; a killed run goes on there.")]
OutputOption = Annotated[Path, typer.Option(file_okay=False, help="Folder for what is measured.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_dtype(dtype: str) -> str:
    """One of `DTYPES`; anything else is bad usage."""
    if dtype not in DTYPES:
        raise typer.BadParameter(f"expected one of {', '.join(DTYPES)}, got {dtype}", param_hint="--dtype")
    return dtype


def read_budget(budget: str | None) -> Budget | None:
    """Tokens or a share; BudgetError for what means nothing."""
    from ..amounts import read

    return read(budget) if budget is not None else None


def read_recipe(
    recipe: str | None, overrides: list[str] | None, budget: str | None
) -> tuple[Recipe | None, Budget | None]:
    """What options ask for; settings and budgets without a recipe are bad usage."""
    if overrides and recipe is None:
        raise typer.BadParameter(f"settings {overrides} need a recipe: add -r NAME", param_hint="OVERRIDES")
    if budget is not None and recipe is None:
        raise typer.BadParameter(f"a budget of {budget} needs a recipe to rescale: add -r NAME", param_hint="--budget")
    from ..recipe import load

    return load(recipe, *(overrides or [])) if recipe else None, read_budget(budget)


def load_model(
    model: str, attn: str | None = None, dtype: str = "auto", device: str | None = None, trust_family: bool = False
) -> Loaded:
    """The model that options name. TokenpruneError says why it cannot be loaded."""
    from ..lab import loading

    return loading.load_model(model, attn, read_dtype(dtype), device, trust_family)
