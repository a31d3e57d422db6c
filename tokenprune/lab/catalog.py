"""What is registered, in words, and recipes as YAML."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import yaml

from ..parts.merger import Merger
from ..recipe import Step, VisionPass, load, source
from ..registry import Entry, registry


def registered(kind: str) -> list[dict[str, str]]:
    """Everything registered of a kind: its name, what it is about, its distribution, and its settings or its paper."""
    rows = []
    for entry in registry().entries[kind].values():
        if kind == "recipe":
            content = yaml.safe_load(source(entry.name))
            about, more = str(content.get("about", "")), {"paper": str(content.get("paper", ""))}
        else:
            about, more = summary(entry.part), {"settings": settings(entry)}
        rows.append({"name": entry.name, "about": about, "distribution": entry.distribution, **more})
    return rows


def settings(entry: Entry) -> str:
    """Of something registered, with their defaults; of an adapter its model types."""
    if not dataclasses.is_dataclass(entry.part):
        return " ".join(getattr(entry.part, "model_types", ()))
    fields = dataclasses.fields(entry.part)
    return " ".join(f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}" for f in fields)


def summary(part: object) -> str:
    """The first paragraph of its docstring."""
    return (inspect.getdoc(part) or "").split("\n\n")[0].replace("\n", " ")


def as_yaml(recipe: str, overrides: Sequence[str]) -> str:
    """A recipe's file as it is; a preset, or a recipe with overrides, as what it becomes."""
    built = load(recipe, *overrides)
    if not overrides and "@" not in recipe:
        return source(recipe)
    content = {"name": built.name, "prune": [_plain(step) for step in built.passes]}
    return yaml.safe_dump(content, sort_keys=False, width=100)


def _plain(step: Step) -> dict[str, Any]:
    """A pass as YAML settings."""
    named: dict[str, Any] = {}
    for key, kind in (("scorer", "scorer"), ("schedule", "scheduler")):
        part = getattr(step, key)
        named[key] = {
            "name": _name(kind, part),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()},
        }
    merge, tower = step.merge, "vision" if isinstance(step, VisionPass) else None
    if isinstance(merge, Merger):
        merge = _name("merger", merge)
    return {**named, "merge": merge, "positions": step.positions, "tower": tower}


def _name(kind: str, part: object) -> str:
    """What a part is registered as."""
    return next(name for name, entry in registry().entries[kind].items() if entry.part is type(part))
