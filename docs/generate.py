"""Writes what the pages can take from the code: `python docs/generate.py`. `test_docs.py` says when it is due.

`python docs/generate.py families` checks every model type of transformers and writes the table of docs/families.md.
Between `<!-- NAME -->` and `<!-- /NAME -->` of a page stands what `blocks()[NAME]` gives.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import transformers
import typer
import yaml

from tokenprune.cli import app
from tokenprune.lab.catalog import summary
from tokenprune.lab.costs import cost, spell
from tokenprune.lab.defaults import SHAPE, TEXT
from tokenprune.lab.families import model_types, owner, why
from tokenprune.plan.shapes import visual_tokens
from tokenprune.recipe import load, presets, registered, source
from tokenprune.registry import DISTRIBUTION, KINDS, Entry, registry
from tokenprune.verify.trust import verify_type

ROOT = Path(__file__).parent.parent
NEXT = ("640", "320", "160")  # presets of LLaVA-NeXT's tiles, which mean nothing on SHAPE
PAGES = ("docs/recipes.md", "docs/reference.md", "docs/cli.md")
FAMILIES = "docs/families.md"


def blocks() -> dict[str, str]:
    """Every generated part by its name."""
    return {"recipes": recipes(), "plans": plans(), "plugins": plugins(), "help": commands()}


def write(text: str, parts: dict[str, str]) -> str:
    """A page with its generated parts as they should be."""
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, part=part: f"{found[1]}\n{part}\n{found[2]}",  # type: ignore[misc]
            text,
            flags=re.S,
        )
    return text


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def recipes() -> str:
    """Every recipe with its presets, what it does, its paper and its distribution."""
    rows = []
    for name in registered():
        content = yaml.safe_load(source(name))
        papers = [one for one in str(content.get("paper", "")).removeprefix("arXiv ").split(", ") if one]
        rows.append(
            [
                f"`{name}`",
                " ".join(f"`@{preset}`" for preset in presets(name)),
                str(content.get("about", "")).rstrip("."),
                ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers),
                registry().entries["recipe"][name].distribution.removeprefix("tokenprune-").replace("mllm", "built in"),
            ]
        )
    return table(["recipe", "presets", "what", "paper", "from"], rows)


def plans() -> str:
    """What every recipe and preset keeps and costs, as `tokenprune ls recipes` says."""
    rows = []
    for name in registered():
        for full in [name, *(f"{name}@{preset}" for preset in presets(name) if preset not in NEXT)]:
            one = cost(load(full), SHAPE, visual_tokens(SHAPE), TEXT)
            rows.append([f"`{full}`", spell(one["plan"]), f"{one['average']:.1f}", f"{one['flops_share']:.1%}"])
    return table(["recipe", "tokens kept from layer L on", "average", "FLOPs"], rows)


def plugins() -> str:
    """What plugins of this repository register, recipes apart."""
    parts = []
    for kind in KINDS:
        for entry in registry().entries[kind].values():
            if kind != "recipe" and entry.distribution != DISTRIBUTION:
                parts.append(f"### {kind} `{entry.name}`\n\n{summary(entry.part)} ({entry.distribution})\n")
                if settings := _settings(entry):
                    parts.append(f"Settings: {settings}.\n")
    return "\n".join(parts)


def families() -> str:
    """Every model type with what a check of it comes to."""
    head = ["model type", "adapter", "pruning equals", "scorers of attention", "why not"]
    rows = [family(model_type) for model_type in model_types()]
    own = sum(row[1] not in ("standard", "none") for row in rows)
    verified = sum(row[1] == "standard" for row in rows)
    return (
        f"transformers {transformers.__version__}: {len(rows)} types, {own} with an adapter of their own, {verified} "
        f"more that the standard one is right for, {len(rows) - own - verified} that are not pruned.\n\n"
    ) + table(head, rows)


def family(model_type: str) -> list[str]:
    """A row of that table."""
    verdict, own = verify_type(model_type), owner(model_type)
    if verdict.refusal is not None:
        return [f"`{model_type}`", f"`{own}`" if own else "none", "", "", _steady(why(verdict))]
    masked = all("shortened" not in one.name for one in verdict.comparisons)
    equals, attention = "masking" if masked else "the shortened sequence", verdict.attention
    adapter = f"`{own}`" if own else "standard"
    return [f"`{model_type}`", adapter, equals, "no" if attention else "yes", _steady(attention or "")]


def _steady(reason: str) -> str:
    """Without numbers, which differ from machine to machine, and without what is said to whoever ran it."""
    return re.sub(r" by up to \S+( of theirs)?| but it was not found.*|^\w+Error: ", "", reason)


def _settings(entry: Entry) -> str:
    if not dataclasses.is_dataclass(entry.part):
        return ""  # an adapter
    return ", ".join(
        f"`{field.name}`" if field.default is dataclasses.MISSING else f"`{field.name}` (`{field.default}`)"
        for field in dataclasses.fields(entry.part)
    )


def commands() -> str:
    """The help of every command."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        usage = " ".join([f"tokenprune {name}", *map(_usage, arguments), "[OPTIONS]"])
        parts.append(f"## tokenprune {name}\n\n{_paragraphs(command.help)}\n\n```text\n{usage}\n```\n")
        if command.params:
            parts.append(table(["argument or option", "default", "what"], [_row(one) for one in command.params]))
    return "\n".join(parts)


def _usage(argument: Any) -> str:
    shown = argument.name.upper() + ("..." if argument.nargs != 1 else "")
    return shown if argument.required else f"[{shown}]"


def _row(parameter: Any) -> list[str]:
    names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
    default = parameter.default
    plain = isinstance(default, (str, int, float, Path)) and not isinstance(default, bool)
    shown = "required" if parameter.required else f"`{default}`" if plain else ""
    more = " Repeatable." if parameter.multiple and "epeatable" not in (parameter.help or "") else ""
    return [" ".join(f"`{name}`" for name in names), shown, f"{parameter.help or ''}{more}".strip()]


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


if __name__ == "__main__":
    checked = sys.argv[1:] == ["families"]
    made = {"families": families()} if checked else blocks()
    for page in (FAMILIES,) if checked else PAGES:
        path = ROOT / page
        path.write_text(write(path.read_text(), made))
        print(path.relative_to(ROOT))
