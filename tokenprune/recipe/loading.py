"""A recipe by name, path or mapping. Nothing is executed, nothing is read but the recipe; all faults come at once."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import RecipeError, UnknownNameError
from ..registry import registry
from .build import build
from .overrides import override, reason_of, refuse_interpolations
from .values import Recipe, RecipeLike

MAX_BYTES = 1 << 20

SUFFIXES = (".yaml", ".yml")


def registered() -> dict[str, Path]:
    """Registered recipes by name."""
    return {name: entry.part for name, entry in registry().entries["recipe"].items()}


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
    refuse_interpolations(name, content, lines)
    return build(name, override(name, content, lines))


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
        raise RecipeError(name, [f"{where} is not readable YAML: {reason_of(error)}"]) from error
    if not isinstance(content, dict):
        raise RecipeError(name, [f"expected a mapping with name and prune, got {type(content).__name__}"])
    return typing.cast("dict[str, Any]", content)


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
