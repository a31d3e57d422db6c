"""Commands that only read: what is there, what a recipe means, what it will cost."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from ..analysis import ecl as layers
from ..errors import LayerError, TokenpruneError
from ..flops import SHAPES, geometry
from ..prompt import plan_stages
from ..recipe import load, presets, source
from ..registry import Entry, registry

RecipeArgument = Annotated[str, typer.Argument(help="A recipe name, name@preset, or a YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings such as prune.0.schedule.average=128.", show_default=False)
]


def ls() -> None:
    """List everything registered: scorers, schedules, mergers, adapters, recipes, and where each comes from."""
    console, known = Console(), registry()
    for kind in ("scorer", "scheduler", "merger", "adapter"):
        table = Table("name", "settings", "what it does", "distribution", title=f"{kind}s", title_justify="left")
        for entry in known.entries[kind].values():
            table.add_row(entry.name, _settings(entry), _summary(entry.thing), entry.distribution)
        console.print(table)
    table = Table("name", "presets", "what it does", "paper", "distribution", title="recipes", title_justify="left")
    for name, entry in known.entries["recipe"].items():
        content = yaml.safe_load(source(name))
        about, paper = content.get("about", ""), content.get("paper", "")
        table.add_row(name, " ".join(presets(name)), about, paper, entry.distribution)
    console.print(table)
    for plugin in known.broken:
        console.print(f"[red]skipped[/red] the broken plugin {plugin.distribution}: {plugin.reason}")


def _settings(entry: Entry) -> str:
    if not dataclasses.is_dataclass(entry.thing):
        return " ".join(getattr(entry.thing, "model_types", ()))
    fields = dataclasses.fields(entry.thing)
    return " ".join(f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}" for f in fields)


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def show(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Print a recipe's file, or with overrides what it becomes."""
    built = load(recipe, *(overrides or []))
    if overrides or "@" in recipe:
        text = yaml.safe_dump(
            {"name": built.name, "prune": [_plain(work) for work in built.passes]}, sort_keys=False, width=100
        )
    else:
        text = source(recipe)
    if sys.stdout.isatty():
        Console().print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")


def _plain(work: Any) -> dict[str, Any]:
    """A pass as YAML settings."""
    named: dict[str, Any] = {}
    for key, kind in (("scorer", "scorer"), ("schedule", "scheduler")):
        part = getattr(work, key)
        name = next(name for name, entry in registry().entries[kind].items() if entry.thing is type(part))
        named[key] = {"name": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()}}
    return {**named, "merge": work.merge, "positions": work.positions}


def check(recipes: Annotated[list[str], typer.Argument(help="Recipe names or YAML files.")]) -> None:
    """Check recipes and say everything that is wrong with all of them at once."""
    failed = 0
    for name in recipes:
        try:
            load(name)
            for preset in presets(name) if "@" not in name else ():
                load(f"{name}@{preset}")
            print(f"{name}: fine")
        except TokenpruneError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    raise typer.Exit(1 if failed else 0)


def explain(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    shape: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}, or a local config.json.")] = "llava-1.5-7b",
    text: Annotated[int, typer.Option(min=0, help="Text tokens of the prompt.")] = 64,
    visual: Annotated[int, typer.Option(min=1, help="Visual tokens of the prompt.")] = 576,
    ecl: Annotated[int | None, typer.Option(help="Entropy Collapse Layer, if none is shipped for the shape.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a recipe does to a model of some shape, without its weights: plan, FLOPs share, KV MiB (fp16)."""
    built, sizes = load(recipe, *(overrides or [])), geometry(shape)
    ecl = ecl or layers.shipped(shape, sizes.depth)
    if ecl is None and any(work.schedule.needs_ecl for work in built.passes):
        raise LayerError(
            f"no Entropy Collapse Layer is shipped for {shape}: pass --ecl LAYER (tokenprune calibrate measures it)"
        )
    stages = plan_stages(built, sizes.depth, [visual], ecl)
    plan = {layer: stage.kept[0] for layer, stage in stages.items()}
    counts = sizes.tokens(plan, visual)
    result = {
        "plan": {str(layer): kept for layer, kept in plan.items()},
        "average": sum(counts) / sizes.depth,
        "flops_share": sizes.flops_share(plan, visual, text),
        "kv_mib": {"full": sizes.kv_mib({}, visual), "pruned": sizes.kv_mib(plan, visual)},
    }
    if as_json:
        print(json.dumps(result))
        return
    table = Table("from layer", "to", "visual tokens", title=f"{built.name} on {shape}", title_justify="left")
    starts = sorted({0, *plan})
    for start, end in zip(starts, [*starts[1:], sizes.depth], strict=True):
        table.add_row(str(start), str(end - 1), str(counts[start]))
    console = Console()
    console.print(table)
    console.print(
        f"average {result['average']:.1f} of {visual} visual tokens over {sizes.depth} layers; decoder prefill FLOPs "
        f"{result['flops_share']:.1%}; KV of visual tokens {sizes.kv_mib(plan, visual):.1f} of "
        f"{sizes.kv_mib({}, visual):.1f} MiB",
        soft_wrap=True,
    )
