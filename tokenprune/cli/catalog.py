"""Commands that only read: what is there, what a recipe means, what it will cost."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..errors import LayerError, TokenpruneError, UnknownNameError
from ..plan.cost import PUBLISHED, geometry, visual_tokens
from ..registry import KINDS
from . import tables

if TYPE_CHECKING:
    from ..amounts import Budget
    from ..recipe import Recipe
    from ..registry import Entry

RecipeArgument = Annotated[str, typer.Argument(help="A recipe name, name@preset, or a YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings such as prune.0.schedule.average=128.", show_default=False)
]
BudgetOption = Annotated[
    str | None, typer.Option(help="Rescale all keeps to this average over the layers: tokens (192) or a share (1/3).")
]
ShapeOption = Annotated[str, typer.Option(help=f"{', '.join(PUBLISHED)}, or a local config.json.")]
TextOption = Annotated[int, typer.Option(min=0, help="Text tokens of the prompt.")]
VisualOption = Annotated[int | None, typer.Option(min=1, help="Visual tokens of the prompt; by default as the shape.")]
EclOption = Annotated[int | None, typer.Option(help="Entropy Collapse Layer, if none is shipped for the shape.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

SHAPE, TEXT = next(iter(PUBLISHED)), 64

PLURALS = {f"{kind}s": kind for kind in KINDS}


def ls(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(PLURALS)}; all without it.")] = None,
    shape: ShapeOption = SHAPE,
    text: TextOption = TEXT,
    visual: VisualOption = None,
    ecl: EclOption = None,
    budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is registered and where it comes from; `ls recipes`: what each keeps and costs on a model shape."""
    if kind is not None and kind not in PLURALS:
        raise UnknownNameError("kind of part", kind, PLURALS)
    if kind != "recipes" and (shape, text, visual, ecl, budget) != (SHAPE, TEXT, None, None, None):
        raise typer.BadParameter("shapes, tokens and budgets are for the table of `tokenprune ls recipes`")
    from ..amounts import read
    from ..registry import registry

    if kind == "recipes":
        wanted = read(budget) if budget is not None else None
        _ls_recipes(shape, visual or visual_tokens(shape), text, ecl, wanted, as_json)
    else:
        found = {plural: _rows(one) for plural, one in PLURALS.items() if kind in (None, plural)}
        if as_json:
            print(json.dumps(found))
        for plural, rows in found.items() if not as_json else ():
            _print_rows(plural, rows)
    for plugin in registry().broken:
        tables.say(f"skipped {plugin}", sys.stderr if as_json else sys.stdout, "red")


def _rows(kind: str) -> list[dict[str, str]]:
    """Everything registered of a kind."""
    import yaml

    from ..recipe import source
    from ..registry import registry

    rows = []
    for entry in registry().entries[kind].values():
        if kind == "recipe":
            content = yaml.safe_load(source(entry.name))
            about, more = str(content.get("about", "")), {"paper": str(content.get("paper", ""))}
        else:
            about, more = _summary(entry.part), {"settings": _settings(entry)}
        rows.append({"name": entry.name, "about": about, "distribution": entry.distribution, **more})
    return rows


def _print_rows(title: str, rows: list[dict[str, str]]) -> None:
    """One table; names stay whole, whatever is empty in all rows is left out, and of texts only the first clause."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)] if rows else ["name"]
    lines = []
    for row in rows:
        brief = {"about": re.split(r"[.:;,](?=\s)| \(", row["about"])[0].rstrip(".")}
        brief["paper"] = row.get("paper", "").removeprefix("arXiv ")
        lines.append([{**row, **brief}[column] for column in columns])
    tables.show(title, columns, lines, words=("about", "paper", "settings"))


def _ls_recipes(shape: str, visual: int, text: int, ecl: int | None, budget: Budget | None, as_json: bool) -> None:
    """Every recipe and preset side by side."""
    from ..recipe import load, presets
    from ..registry import registry

    sizes, rows = geometry(shape), []
    for name in registry().entries["recipe"]:
        for full in [name, *(f"{name}@{preset}" for preset in presets(name))]:
            try:
                rows.append({"recipe": full, **_cost(load(full), shape, visual, text, ecl, budget)})
            except TokenpruneError as error:
                rows.append({"recipe": full, "error": str(error)})
    if as_json:
        print(json.dumps(rows))
        return
    title = f"recipes on {shape}: {visual} visual and {text} text tokens, {sizes.depth} layers"
    lines: list[list[str | Text]] = []
    for row in rows:
        if "error" in row:
            lines.append([row["recipe"], Text(row["error"], "red"), "", ""])
        else:
            lines.append([row["recipe"], _spell(row["plan"]), f"{row['average']:.1f}", f"{row['flops_share']:.1%}"])
    kept = "tokens kept from layer L on"
    tables.show(title, ["recipe", kept, "average", "FLOPs"], lines, words=[kept])


def _spell(plan: dict[str, int]) -> str:
    """`L2: 166`; of a long plan the first two stages and the last."""
    stages = [f"tower {layer}: {kept}" if int(layer) < 0 else f"L{layer}: {kept}" for layer, kept in plan.items()]
    if len(stages) > 5:
        return f"{stages[0]}, {stages[1]} ... {stages[-1]} ({len(stages)} stages)"
    return ", ".join(stages) or "all"


def _settings(entry: Entry) -> str:
    if not dataclasses.is_dataclass(entry.part):
        return " ".join(getattr(entry.part, "model_types", ()))
    fields = dataclasses.fields(entry.part)
    return " ".join(f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}" for f in fields)


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def show(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Print a recipe's file, or with overrides what it becomes."""
    from ..recipe import load, source

    built = load(recipe, *(overrides or []))
    if overrides or "@" in recipe:
        import yaml

        text = yaml.safe_dump(
            {"name": built.name, "prune": [_plain(step) for step in built.passes]}, sort_keys=False, width=100
        )
    else:
        text = source(recipe)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax("", "yaml", background_color="default").highlight(text), end="", soft_wrap=True)
    else:
        print(text, end="")


def _plain(step: Any) -> dict[str, Any]:
    """A pass as YAML settings."""
    from ..recipe import VisionPass
    from ..registry import registry

    named: dict[str, Any] = {}
    for key, kind in (("scorer", "scorer"), ("schedule", "scheduler")):
        part = getattr(step, key)
        name = next(name for name, entry in registry().entries[kind].items() if entry.part is type(part))
        named[key] = {"name": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()}}
    merge, tower = step.merge, "vision" if isinstance(step, VisionPass) else None
    if merge is not None and not isinstance(merge, str):
        merge = next(name for name, entry in registry().entries["merger"].items() if entry.part is type(merge))
    return {**named, "merge": merge, "positions": step.positions, "tower": tower}


def check(recipes: Annotated[list[str], typer.Argument(help="Recipe names or YAML files.")]) -> None:
    """Check recipes and say everything that is wrong with all of them at once; warn of names that promise too much."""
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
            promised = full.rpartition("@")[2] if "@" in full else recipe.name
            number = int(promised) if re.fullmatch("[0-9]{1,6}", promised) else None
            warning = _broken_promise(recipe, number) if number is not None else None
            if warning := warning or _idle(recipe, _promised_on(number or 0)):
                tables.say(f"{full}: {warning}", sys.stderr, "yellow")
    raise typer.Exit(1 if failed else 0)


def _broken_promise(recipe: Recipe, promised: int) -> str | None:
    """What a recipe named after a number of tokens averages instead, where published tables have that number.

    Those are LLaVA-NeXT's for 640, 320 and 160, and what exceeds LLaVA-1.5's 576 tokens; the others are LLaVA-1.5's.
    """
    shape = _promised_on(promised)
    try:
        average = _cost(recipe, shape, visual_tokens(shape))["average"]
    except TokenpruneError as error:
        return f"promises {promised} but has no plan on {shape}: {error}"
    if abs(average - promised) <= 1:
        return None
    return (
        f"promises {promised} but averages {average:.1f} tokens over the layers ({shape}, {visual_tokens(shape)} "
        "visual tokens); rename it, or give an average"
    )


def _promised_on(promised: int) -> str:
    """The model shape that a number of tokens is about."""
    largest = max(PUBLISHED, key=visual_tokens)
    return largest if promised in (160, 320) or promised > visual_tokens(SHAPE) else SHAPE


def _idle(recipe: Recipe, shape: str) -> str | None:
    """That a recipe drops nothing on a shape, or None."""
    visual = visual_tokens(shape)
    try:
        plan = _cost(recipe, shape, visual)["plan"]
    except TokenpruneError:  # without a plan: `explain` says why
        return None
    return None if plan else f"drops nothing: it keeps all {visual} visual tokens of {shape}"


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
    from ..amounts import read
    from ..recipe import load

    wanted = read(budget) if budget is not None else None
    built, sizes, visual = load(recipe, *(overrides or [])), geometry(shape), visual or visual_tokens(shape)
    result = _cost(built, shape, visual, text, ecl, wanted)
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
    kv = result["kv_mib"]
    tables.say(
        f"average {result['average']:.1f} of {visual} visual tokens over {sizes.depth} layers; decoder prefill FLOPs "
        f"{result['flops_share']:.1%}; KV of visual tokens {kv['pruned']:.1f} of {kv['full']:.1f} MiB"
    )


def _cost(
    recipe: Recipe, shape: str, visual: int, text: int = TEXT, ecl: int | None = None, budget: Budget | None = None
) -> dict[str, Any]:
    """Plan, average over the layers, FLOPs share and KV MiB (fp16) of one prompt. Raises LayerError, BudgetError."""
    from .. import ecl as layers
    from ..plan.stages import plan_whole

    sizes = geometry(shape)
    ecl = ecl or layers.shipped(shape, sizes.depth)
    facts = {} if ecl is None else {"ecl": ecl}
    if any(not facts.keys() >= set(step.schedule.needs) for step in recipe.decoder_passes):
        raise LayerError(
            f"no Entropy Collapse Layer is shipped for {shape}: pass --ecl LAYER (tokenprune calibrate measures it)"
        )
    plan = plan_whole(recipe, sizes, visual, facts, budget)
    return {
        "plan": {str(layer): kept for layer, kept in plan.items()},
        "average": sum(sizes.tokens(plan, visual)) / sizes.depth,
        "flops_share": sizes.flops_share(plan, visual, text),
        "kv_mib": {"full": sizes.kv_mib({}, visual), "pruned": sizes.kv_mib(plan, visual)},
    }
