"""Dotlist lines such as `prune.0.schedule.average=128`, applied to what a recipe's YAML holds."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import RecipeError
from ..parts.merger import Merger
from ..parts.scheduler import Scheduler
from ..registry import registry
from .values import SCORERS, Pass, VisionPass

BUDGETS = ("keep", "average", "ratio")
"""Ways to say how many tokens stay: alternatives, so an override that gives one drops the others."""


def reason_of(error: Exception) -> str:
    """What a YAML reader says, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refuse_interpolations(name: str, content: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Before OmegaConf sees them: it would resolve them while overrides are applied."""
    texts = [*_texts(content), *((f"override {line!r}", line) for line in lines)]
    problems = [f"{path}: interpolations are not read in recipes, got {text!r}" for path, text in texts if "${" in text]
    if problems:
        raise RecipeError(name, problems)


def override(name: str, content: dict[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Apply dotlist lines; a bare string `scorer: entropy` is `{name: entropy}` so that lines can reach into it."""
    content = {**content, "prune": [_spell_out(item) for item in _as_list(content.get("prune"))]}
    if not lines:
        return content
    if any(
        isinstance(part, (*SCORERS, Scheduler, Merger, Pass, VisionPass))
        for item in content["prune"]
        for part in _parts(item)
    ):
        raise RecipeError(name, ["overrides reach into settings: spell scorer and schedule out, or change the objects"])
    try:
        config = OmegaConf.create(content)
    except OmegaConfBaseException as error:
        raise RecipeError(name, [str(error).strip().splitlines()[0]]) from error
    problems = []
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or not key:
            problems.append(f"override {line!r}: expected path=value, such as prune.0.schedule.layer=5")
            continue
        try:
            setting = yaml.safe_load(value)
            _make_room(config, key, setting)
            OmegaConf.update(config, key, setting, merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
            problems.append(f"override {line!r}: {_beyond(content, key) or reason_of(error)}")
    if problems:
        raise RecipeError(name, problems)
    updated = typing.cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    return {**updated, "prune": [_spell_out(item) for item in _as_list(updated.get("prune"))]}


def _make_room(config: Any, key: str, setting: Any) -> None:
    """For a setting of a schedule: budgets are alternatives, and one that finds its layer becomes one that is told."""
    parent, _, last = key.rpartition(".")
    schedule: Any = OmegaConf.select(config, parent) if parent.endswith(".schedule") else None
    if not OmegaConf.is_dict(schedule) or setting is None:
        return
    for other in BUDGETS if last in BUDGETS else ():
        schedule.pop(other, None)
    if last == "layer" and (known := registry().entries["scheduler"].get(str(schedule.get("name")))):
        schedule["name"] = known.part.with_layer or schedule["name"]


def _beyond(content: Any, key: str) -> str | None:
    """Which entry of a list a key asks for that is not there, or None."""
    path = ""
    for step in re.findall(r"[^.\[\]]+", key):
        if isinstance(content, (list, tuple)):
            if not step.isdecimal() or int(step) >= len(content):
                last = f" to {path}.{len(content) - 1}" if len(content) > 1 else ""
                return f"there is no {path}.{step}, only {path}.0{last}"
            content = content[int(step)]
        elif isinstance(content, Mapping):
            content = content.get(step)
        else:
            return None
        path = f"{path}.{step}" if path else step
    return None


def _parts(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, Mapping) else [item]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _spell_out(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    return {key: {"name": v} if key in ("scorer", "schedule") and isinstance(v, str) else v for key, v in item.items()}


def _texts(value: Any, path: str = "") -> typing.Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(entry, f"{path}.{key}" if path else str(key))
