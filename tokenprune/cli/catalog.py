"""Commands that only read: what is there, what a recipe means, what it will cost."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.text import Text

from ..errors import TokenpruneError, UnknownNameError
from ..lab.defaults import SHAPE, TEXT
from ..plan.shapes import VISUAL, geometry, shapes, visual_tokens
from ..registry import KINDS
from . import tables
from .families import list_families
from .options import (
    BudgetOption,
    EclOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    ShapeOption,
    TextOption,
    VisualOption,
    read_budget,
)

PLURALS = {f"{kind}s": kind for kind in KINDS}
SHAPES, FAMILIES = "shapes", "families"


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(help=f"One of {', '.join(PLURALS)}, shapes or families; without it all but the last two."),
    ] = None,
    shape: ShapeOption = SHAPE,
    text: TextOption = TEXT,
    visual: VisualOption = None,
    ecl: EclOption = None,
    budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is registered and where it comes from; `ls recipes`: what each keeps and costs on a model shape; `ls
    shapes`: the models whose sizes are known; `ls families`: which model types are pruned, by which adapter."""
    if kind is not None and kind not in (*PLURALS, SHAPES, FAMILIES):
        raise UnknownNameError("kind of part", kind, (*PLURALS, SHAPES, FAMILIES))
    if kind != "recipes" and (shape, text, visual, ecl, budget) != (SHAPE, TEXT, None, None, None):
        raise typer.BadParameter("shapes, tokens and budgets are for the table of `tokenprune ls recipes`")
    from ..lab import catalog, costs
    from ..registry import registry

    if kind == SHAPES:
        _list_shapes(as_json)
    elif kind == FAMILIES:
        list_families(as_json)
    elif kind == "recipes":
        wanted, visual, depth = read_budget(budget), visual or visual_tokens(shape), geometry(shape).depth
        rows = costs.costs(shape, visual, text, ecl, wanted)
        if as_json:
            print(json.dumps(list(rows)))
        else:
            _print_costs(rows, f"recipes on {shape}: {visual} visual and {text} text tokens, {depth} layers")
    else:
        found = {plural: catalog.registered(one) for plural, one in PLURALS.items() if kind in (None, plural)}
        if as_json:
            print(json.dumps(found))
        for plural, parts in found.items() if not as_json else ():
            _print_parts(plural, parts)
    for plugin in registry().broken:
        tables.say(f"skipped {plugin}", sys.stderr if as_json else sys.stdout, "red")


def _list_shapes(as_json: bool) -> None:
    """Every shape with what `--shape` takes from it."""
    found = shapes().values()
    if as_json:
        print(json.dumps([shape.described for shape in found]))
        return
    lines = []
    for shape in found:
        size, keeping = shape.size, shape.size.kv_blocks
        heads = f"{size.heads}/{size.kv_heads}"
        kv, visual = str(keeping.whole) if keeping else "", str(shape.visual or "")
        source = shape.source.partition(" (")[0] or "built in"
        lines.append([shape.name, str(size.depth), kv, str(size.width), heads, visual, source])
    header = ["shape", "blocks", "KV blocks", "width", "heads/KV", "visual tokens", "source"]
    tables.show("models whose sizes are known", header, lines, words=["source"])
    tables.say(
        "KV blocks keep KV of all tokens; where nothing stands, all do. Visual tokens: where nothing stands, their "
        f"number depends on the picture, and {VISUAL} are assumed"
    )


def _print_parts(title: str, rows: list[dict[str, str]]) -> None:
    """One table; names stay whole, whatever is empty in all rows is left out, and of texts only the first clause."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)] if rows else ["name"]
    lines = []
    for row in rows:
        brief = {"about": re.split(r"[.:;,](?=\s)| \(", row["about"])[0].rstrip(".")}
        brief["paper"] = row.get("paper", "").removeprefix("arXiv ")
        lines.append([{**row, **brief}[column] for column in columns])
    tables.show(title, columns, lines, words=("about", "paper", "settings"))


def _print_costs(rows: Iterable[dict[str, Any]], title: str) -> None:
    """Every recipe and preset side by side."""
    from ..lab.costs import spell

    lines: list[list[str | Text]] = []
    for row in rows:
        if "error" in row:
            lines.append([row["recipe"], Text(row["error"], "red"), "", ""])
        else:
            lines.append([row["recipe"], spell(row["plan"]), f"{row['average']:.1f}", f"{row['flops_share']:.1%}"])
    kept = "tokens kept from layer L on"
    tables.show(title, ["recipe", kept, "average", "FLOPs"], lines, words=[kept])


def show(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Print a recipe's file, or with overrides what it becomes."""
    from ..lab.catalog import as_yaml

    text = as_yaml(recipe, overrides or [])
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax("", "yaml", background_color="default").highlight(text), end="", soft_wrap=True)
    else:
        print(text, end="")


def check(recipes: Annotated[list[str], typer.Argument(help="Recipe names or YAML files.")]) -> None:
    """Check recipes and say everything that is wrong with all of them at once; warn of names that promise too much."""
    from ..lab.costs import warning
    from ..recipe import load, presets

    failed = 0
    for name in recipes:
        try:
            built = {name: load(name)}
            for preset in presets(name) if "@" not in name else ():
                built[f"{name}@{preset}"] = load(f"{name}@{preset}")
            print(f"{name}: fine")
        except TokenpruneError as error:
            failed += 1
            tables.say(f"{name}: {error}", sys.stderr)
            continue
        for full, recipe in built.items():
            if said := warning(full, recipe):
                tables.say(f"{full}: {said}", sys.stderr, "yellow")
    raise typer.Exit(1 if failed else 0)


def explain(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    shape: ShapeOption = SHAPE,
    text: TextOption = TEXT,
    visual: VisualOption = None,
    ecl: EclOption = None,
    budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe does to a model of some shape, without its weights: plan, FLOPs share, KV MiB (fp16)."""
    from ..lab.costs import cost
    from ..recipe import load

    wanted = read_budget(budget)
    built, sizes, visual = load(recipe, *(overrides or [])), geometry(shape), visual or visual_tokens(shape)
    result = cost(built, shape, visual, text, ecl, wanted)
    if as_json:
        print(json.dumps(result))
        return
    plan = {int(layer): kept for layer, kept in result["plan"].items()}
    counts = sizes.tokens(plan, visual)
    rows = [[f"tower {layer + sizes.vision_depth}", "", str(plan[layer])] for layer in plan if layer < 0]
    starts = sorted({0, *(layer for layer in plan if layer >= 0)})
    for start, end in zip(starts, [*starts[1:], sizes.depth], strict=True):
        rows.append([str(start), str(end - 1), str(counts[start])])
    tables.show(f"{built.name} on {shape}", ["from layer", "to", "visual tokens"], rows)
    if not plan:
        tables.say(f"nothing is dropped: {built.name} keeps all {visual} visual tokens")
    kv, where = result["kv_mib"], f" ({sizes.kv_blocks})" if sizes.kv_blocks else ""
    tables.say(
        f"average {result['average']:.1f} of {visual} visual tokens over {sizes.depth} layers; decoder prefill FLOPs "
        f"{result['flops_share']:.1%}; KV of visual tokens {kv['pruned']:.1f} of {kv['full']:.1f} MiB{where}"
    )
