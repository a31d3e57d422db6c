"""YAML + overrides -> frozen objects. Nothing is executed, nothing is read but the recipe; all faults come at once."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import RecipeError, RegistryError, UnknownNameError
from .interfaces import Merger, Scheduler, Scorer, TowerScorer, reads
from .registry import registry

MAX_BYTES = 1 << 20
SUFFIXES = (".yaml", ".yml")
SCORERS = (Scorer, TowerScorer)
BUDGETS = ("keep", "average", "ratio")
"""Ways to say how many tokens stay: alternatives, so an override that gives one drops the others."""

RecipeLike = typing.Union["Recipe", Mapping[str, Any], str, Path]
"""A name (`entropyprune`, `entropyprune@128`), a path, a mapping as in YAML, or a Recipe."""


@dataclass(frozen=True)
class Pass:
    """One scorer and one schedule.

    Args:
        scorer: ranks the tokens.
        schedule: says where, and how many stay.
        merge: name of a merger that folds the dropped tokens into the kept ones first; None just drops. Inside the
            vision tower there is `nearest`: means weighted by how many tokens each stands for, into the token that the
            scorer names, or the kept one with the most similar rows.
        positions: `original` leaves the decoder's positions as they were; `compact` numbers what is left anew. After a
            pass inside the vision tower that is what enters the decoder: rotary positions in the tower never change.
        tower: `vision` prunes inside the vision tower, where `layer` counts its blocks (the projector is the last one)
            and budgets are of each picture, tile or frame; None prunes in the decoder.
    """

    scorer: Scorer | TowerScorer
    schedule: Scheduler
    merge: str | None = None
    positions: Literal["original", "compact"] = "original"
    tower: Literal["vision"] | None = None

    def __post_init__(self) -> None:
        name = type(self.scorer).__name__
        if self.tower is None:
            if not isinstance(self.scorer, Scorer):
                raise ValueError(f"{name} ranks pictures inside the vision tower: give its pass tower: vision")
            return
        if not isinstance(self.scorer, TowerScorer):
            raise ValueError(f"{name} ranks tokens of a prompt, which the vision tower does not know: leave tower out")
        if self.merge not in (None, "nearest"):
            raise ValueError(f"inside the vision tower tokens are merged by `nearest`, got merge: {self.merge}")
        if self.schedule.needs_ecl:
            raise ValueError("the Entropy Collapse Layer is one of the decoder: give the vision tower another schedule")

    @property
    def merger(self) -> Merger | None:
        return None if self.merge is None else registry().get("merger", self.merge)


@dataclass(frozen=True)
class Recipe:
    """A name and the passes, in order. Never mentions a model."""

    name: str
    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        if not self.passes:
            raise RecipeError(self.name, ["prune: a recipe needs at least one pass, got an empty list"])
        if self.passes != (*self.tower, *self.decoder):
            raise RecipeError(self.name, ["prune: passes with tower: vision come first, pictures are encoded first"])
        for number, work in enumerate(self.passes):
            if self.tower and not work.tower and (work.scorer.tower or reads(work.merger)):  # type: ignore[union-attr]
                reason = f"prune.{number}: it reads the vision tower's states of every token"
                raise RecipeError(self.name, [f"{reason}, and passes with tower: vision have dropped some of them"])

    @property
    def tower(self) -> tuple[Pass, ...]:
        """Passes inside the vision tower."""
        return tuple(work for work in self.passes if work.tower)

    @property
    def decoder(self) -> tuple[Pass, ...]:
        """Passes in the decoder."""
        return tuple(work for work in self.passes if not work.tower)


def registered() -> dict[str, Path]:
    """Registered recipes by name."""
    return {name: entry.thing for name, entry in registry().entries["recipe"].items()}


def source(name: str) -> str:
    """The YAML text of a recipe."""
    return _locate(name).read_text()


def presets(name: str) -> dict[str, list[str]]:
    """The presets of a recipe: overrides by preset name."""
    return _presets(name, _read(name, _locate(name)))


def load(recipe: RecipeLike, *overrides: str) -> Recipe:
    """Build a recipe.

    Args:
        recipe: see RecipeLike. A mapping may hold Scorer and Scheduler objects in place of their settings.
        overrides: OmegaConf dotlist lines such as `prune.0.schedule.average=128`.

    Raises:
        UnknownNameError: no such recipe, preset, scorer, schedule or merger (recipes: alone; others: in RecipeError).
        RecipeError: every fault of the recipe, each with its path.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise RecipeError(recipe.name, ["a Recipe object takes no overrides: use dataclasses.replace"])
        return recipe
    if isinstance(recipe, Mapping):
        name, content, lines = str(recipe.get("name", "recipe")), dict(recipe), list(overrides)
    else:
        name = str(recipe)
        base, _, preset = name.rpartition("@")
        if not base or _is(Path.is_file, name) or "/" in preset or Path(preset).suffix in SUFFIXES:
            base, preset = name, ""  # an @ in a path
        content = _read(name, _locate(base))
        lines = [*overrides]
        if preset:
            known = _presets(name, content)
            if preset not in known:
                raise UnknownNameError(f"preset of {base}", preset, known)
            lines = [*known[preset], *overrides]
    content.pop("presets", None)
    _refuse_interpolations(name, content, lines)
    return _build(name, _override(name, content, lines))


def _locate(name: str | Path) -> Path:
    try:
        return typing.cast(Path, registry().get("recipe", str(name)))
    except UnknownNameError:
        path = Path(name)
        if _is(Path.is_file, name) and (path.suffix in SUFFIXES or len(path.parts) > 1):
            return path
        reason = f"there is no file {path}"
        if str(name) and _is(Path.is_dir, name):
            reason = f"{path} is a folder"
        elif path.suffix not in SUFFIXES and len(path.parts) <= 1:
            raise
    raise RecipeError(str(name), [f"{reason}: give a recipe name or the path of a YAML file"])


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(name, [f"the file has {path.stat().st_size} bytes: a recipe has at most {MAX_BYTES}"])
        config = OmegaConf.load(path)
        content = OmegaConf.to_container(config, resolve=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        where = path.name
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            where += f", line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1},"
        raise RecipeError(name, [f"{where} is not readable YAML: {_reason(error)}"]) from error
    if not isinstance(content, dict):
        raise RecipeError(name, [f"expected a mapping with name and prune, got {type(content).__name__}"])
    return typing.cast("dict[str, Any]", content)


def _reason(error: Exception) -> str:
    """What a YAML reader says, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is(kind: Callable[[Path], bool], name: str | Path) -> bool:
    try:
        return kind(Path(name))
    except OSError:  # no path at all: too long, say
        return False


def _presets(name: str, content: Mapping[str, Any]) -> dict[str, list[str]]:
    given = content.get("presets", {})
    wrong = not isinstance(given, Mapping) or any(
        not isinstance(lines, list) or any(not isinstance(line, str) for line in lines) for lines in given.values()
    )
    if wrong:
        raise RecipeError(name, [f"presets: expected lists of overrides by name, got {given!r}"])
    return {str(preset): list(lines) for preset, lines in given.items()}


def _refuse_interpolations(name: str, content: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Before OmegaConf sees them: it would resolve them while overrides are applied."""
    texts = [*_texts(content), *((f"override {line!r}", line) for line in lines)]
    problems = [f"{path}: interpolations are not read in recipes, got {text!r}" for path, text in texts if "${" in text]
    if problems:
        raise RecipeError(name, problems)


def _override(name: str, content: dict[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Apply dotlist lines; a bare string `scorer: entropy` is `{name: entropy}` so that lines can reach into it."""
    content = {**content, "prune": [_spell_out(item) for item in _as_list(content.get("prune"))]}
    if not lines:
        return content
    if any(isinstance(part, (*SCORERS, Scheduler, Pass)) for item in content["prune"] for part in _parts(item)):
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
            parent, _, last = key.rpartition(".")
            schedule: Any = OmegaConf.select(config, parent) if parent.endswith(".schedule") else None
            if OmegaConf.is_dict(schedule) and setting is not None:
                for other in BUDGETS if last in BUDGETS else ():
                    schedule.pop(other, None)
                if last == "layer" and schedule.get("name") == "ecl":
                    schedule["name"] = "fixed"  # the same, with its layer said
            OmegaConf.update(config, key, setting, merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
            problems.append(f"override {line!r}: {_beyond(content, key) or _reason(error)}")
    if problems:
        raise RecipeError(name, problems)
    updated = typing.cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    return {**updated, "prune": [_spell_out(item) for item in _as_list(updated.get("prune"))]}


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


def _build(name: str, content: Mapping[str, Any]) -> Recipe:
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
    return Recipe(str(content.get("name", name)), tuple(typing.cast("list[Pass]", passes)))


def _texts(value: Any, path: str = "") -> typing.Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(entry, f"{path}.{key}" if path else str(key))


def _build_pass(item: Any, path: str, problems: list[str]) -> Pass | None:
    if isinstance(item, Pass):
        return item
    if not isinstance(item, Mapping):
        problems.append(f"{path}: expected a mapping with scorer and schedule, got {item!r}")
        return None
    settings = dict(item)
    parts: dict[str, Any] = {}
    for key, kind, base in (("scorer", "scorer", SCORERS), ("schedule", "scheduler", Scheduler)):
        given = settings.pop(key, None)
        parts[key] = given if isinstance(given, base) else _build_named(given, kind, f"{path}.{key}", problems)
    if settings.get("merge") is not None:
        try:
            registry().get("merger", str(settings["merge"]))
        except (UnknownNameError, RegistryError) as error:
            problems.append(f"{path}.merge: {error}")
    made = _construct(Pass, {**settings, **parts}, path, problems, given=parts)
    return made if isinstance(made, Pass) else None


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
    cls: type, settings: Mapping[str, Any], path: str, problems: list[str], given: Mapping[str, Any] | None = None
) -> Any:
    """`cls(**settings)` with every key and type checked first; None if anything is wrong."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    before = len(problems)
    values: dict[str, Any] = dict(given or {})
    for key, value in settings.items():
        if key in values:
            continue
        if key not in fields:
            problems.append(f"{path}.{key}: unknown key; {cls.__name__} has {', '.join(fields) or 'no settings'}")
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
