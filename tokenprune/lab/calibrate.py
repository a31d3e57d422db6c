"""A model measured on pictures: its Entropy Collapse Layer, or a recipe that is fitted to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from torch import Tensor

from .. import ecl
from ..errors import TokenpruneError, UnknownNameError
from ..model.anatomy import Anatomy
from ..parts.fact import Fact, Sample
from ..registry import registry
from .loading import Loaded
from .media import pictures, read_image
from .pico import scenes
from .profile import stability


@dataclass(frozen=True)
class Calibrated:
    """What was measured.

    Attributes:
        entropies: of the visual tokens in each block, in nats, as means over the prompts.
        collapse: the layer.
        interval: of its drop, 95 % over bootstrap samples of the prompts.
        remembered: the file of the layer for exactly these weights; None where it could not be written.
        shipped: the layer that the package brings for this model, None without one.
    """

    entropies: list[float]
    collapse: ecl.Collapse
    interval: list[float]
    remembered: Path | None
    shipped: int | None

    def as_yaml(self, model: str, source: str) -> str:
        """As in `configs/ecl/`."""
        return yaml.safe_dump(self.collapse.entry(model, source), sort_keys=False)


def choose(folder: Path | None, limit: int) -> list[Image.Image]:
    """At most `limit` pictures of a folder; without one, scenes that pico draws. Raises MediaError."""
    if folder is not None:
        return [read_image(path) for path in pictures(folder)[:limit]]
    return [scene.picture for scene, _ in zip(scenes.held_out(0), range(limit), strict=False)]


def method(name: str) -> type[Fact]:
    """What measures for a method. Raises UnknownNameError, RegistryError."""
    found = registry()
    if name not in found.entries["fact"] and name not in found.contested["fact"]:
        raise UnknownNameError("calibration", name, found.entries["fact"])
    made_by: type[Fact] = found.get("fact", name)
    return made_by


def settings(made_by: type[Fact]) -> list[str]:
    """Names of the settings of a method."""
    return [field.name for field in dataclasses.fields(made_by)]  # type: ignore[arg-type]


def measured(
    name: str, made_by: type[Fact], loaded: Loaded, prompts: Iterable[dict[str, Tensor]], given: Mapping[str, Any]
) -> tuple[Fact, Any]:
    """A fact with these settings, and its value. Raises TokenpruneError where its settings mean nothing."""
    adapter = Anatomy.of(loaded.model).adapter
    try:
        fact = made_by(**given)
        return fact, fact.measure(loaded.model, adapter, (Sample.of(loaded.model, adapter, one) for one in prompts))
    except (ValueError, TypeError) as error:
        raise TokenpruneError(f"calibration {name!r}: {error}") from error


def fitted(fact: Fact, value: Any) -> str | None:
    """The recipe that is fitted with a value, as YAML; None for what schedules need."""
    recipe = fact.recipe(value)
    return None if recipe is None else yaml.safe_dump(recipe, sort_keys=False, width=100)


def keep(loaded: Loaded, fact: Fact, value: Any) -> str:
    """Remember a value for these weights, and say where."""
    path = fact.remember(loaded.model, Anatomy.of(loaded.model).adapter, value)
    return f"remembered in {path}" if path else "not remembered"


def remembered(loaded: Loaded, fact: Fact, value: ecl.Curves) -> Calibrated:
    """The Entropy Collapse Layer as it was measured, remembered for these weights."""
    interval = stability(np.array(value.samples), seed=0)["ecl"]["drop_interval"]
    path = fact.remember(loaded.model, Anatomy.of(loaded.model).adapter, value)
    shipped = ecl.shipped(str(loaded.model.config._name_or_path), len(value.mean))
    return Calibrated(list(value.mean), value.collapse, interval, path, shipped)
