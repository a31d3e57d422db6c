"""Plain content as in YAML -> frozen objects, every key and type checked; all faults come at once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from ..errors import RecipeError, RegistryError, UnknownNameError
from ..parts.merger import Merger
from ..parts.scheduler import Scheduler
from ..registry import registry
from .values import SCORERS, Pass, Recipe, Step, VisionPass


def build(name: str, content: Mapping[str, Any]) -> Recipe:
    problems: list[str] = []
    for key in content:
        if key not in ("name", "about", "paper", "prune"):
            problems.append(f"{key}: unknown key; a recipe has name, about, paper, prune and presets")
    if not isinstance(content.get("name", name), str):
        problems.append(f"name: expected str, got {content['name']!r}")
    items = content["prune"]
    if not items:
        problems.append("prune: expected a list with at least one pass, got nothing")
    passes = [_build_pass(item, f"prune.{i}", problems) for i, item in enumerate(items)]
    if problems:
        raise RecipeError(name, problems)
    return Recipe(str(content.get("name", name)), tuple(typing.cast("list[Step]", passes)))


def _build_pass(item: Any, path: str, problems: list[str]) -> Step | None:
    if isinstance(item, (Pass, VisionPass)):
        return item
    if not isinstance(item, Mapping):
        problems.append(f"{path}: expected a mapping with scorer and schedule, got {item!r}")
        return None
    settings = dict(item)
    tower = settings.pop("tower", None)
    if tower not in (None, "vision"):
        problems.append(f"{path}.tower: expected vision or null, got {tower!r}")
    parts: dict[str, Any] = {}
    for key, kind, base in (("scorer", "scorer", SCORERS), ("schedule", "scheduler", Scheduler)):
        given = settings.pop(key, None)
        parts[key] = given if isinstance(given, base) else _build_named(given, kind, f"{path}.{key}", problems)
    if tower is None and settings.get("merge") is not None:
        parts["merge"] = _build_merger(settings.pop("merge"), f"{path}.merge", problems)
    cls = Pass if tower is None else VisionPass
    made: Step | None = _construct(cls, {**settings, **parts}, path, problems, given=parts, besides=("tower",))
    return made


def _build_merger(given: Any, path: str, problems: list[str]) -> Merger | None:
    """From a name, or a mapping with a name and settings."""
    if isinstance(given, Merger):
        return given
    if isinstance(given, Mapping):
        made: Merger | None = _build_named(given, "merger", path, problems)
        return made
    try:
        made_by = registry().get("merger", str(given))
    except (UnknownNameError, RegistryError) as error:
        problems.append(f"{path}: {error}")
        return None
    return _construct(made_by, {}, path, problems)


def _build_named(given: Any, kind: str, path: str, problems: list[str]) -> Any:
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        problems.append(f"{path}: expected a name or a mapping with a name, got {given!r}")
        return None
    settings = dict(given)
    try:
        made_by = registry().get(kind, settings.pop("name"))
    except (UnknownNameError, RegistryError) as error:
        problems.append(f"{path}.name: {error}")
        return None
    return _construct(made_by, settings, path, problems)


def _construct(
    cls: type,
    settings: Mapping[str, Any],
    path: str,
    problems: list[str],
    given: Mapping[str, Any] | None = None,
    besides: tuple[str, ...] = (),
) -> Any:
    """`cls(**settings)` with every key and type checked first; None if anything is wrong.

    Args:
        given: settings that are built already; None where that failed.
        besides: keys that were read before, for messages.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    before = len(problems)
    values: dict[str, Any] = dict(given or {})
    for key, value in settings.items():
        if key in values:
            continue
        if key not in fields:
            problems.append(
                f"{path}.{key}: unknown key; {cls.__name__} has {', '.join([*fields, *besides]) or 'no settings'}"
            )
            continue
        try:
            values[key] = _convert(value, hints[key])
        except ValueError as error:
            problems.append(f"{path}.{key}: {error}")
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in settings:
            problems.append(f"{path}.{key}: required, not given")
    if len(problems) > before or any(value is None for value in (given or {}).values()):
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        problems.append(f"{path}: {error}")
        return None


def _convert(value: Any, hint: Any) -> Any:
    """`value` as `hint`, or ValueError. Lists become tuples and ints become floats; nothing else is bent."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        exact = [option for option in options if type(value) is option]  # int before float
        for option in exact or options:
            try:
                return _convert(value, option)
            except ValueError:
                continue
    elif origin is Literal:
        if value in options:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(entry, options[0]) for entry in value)
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):
                return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"expected {_spell(hint)}, got {value!r}")


def _spell(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spell(option) for option in options))
    if origin is Literal:
        return " | ".join(map(str, options))
    if origin is tuple:
        return f"a list of ({_spell(options[0])})"
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))
