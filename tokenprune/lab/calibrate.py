"""A model measured on pictures: its Entropy Collapse Layer, or a recipe that is fitted to it."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from torch import Tensor

from .. import ecl
from ..errors import TokenpruneError, UnknownNameError
from ..model.anatomy import Anatomy
from ..parts.scheduler import Calibration
from ..registry import registry
from .loading import Loaded
from .media import pictures, read_image
from .pico import scenes
from .profile import stability

ECL = "ecl"
"""The method that fits no recipe."""


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


def method(name: str) -> Calibration | None:
    """What fits the recipe of a method; None for the Entropy Collapse Layer. Raises UnknownNameError, RegistryError."""
    if name == ECL:
        return None
    found = registry()
    if name not in found.entries["calibration"] and name not in found.contested["calibration"]:
        raise UnknownNameError("calibration", name, [ECL, *found.entries["calibration"]])
    fit: Calibration = found.get("calibration", name)
    return fit


def settings(fit: Calibration | None) -> list[str]:
    """Names of the settings of a method."""
    return list(inspect.signature(fit).parameters)[2:] if fit is not None else []


def fitted(
    name: str, fit: Calibration, loaded: Loaded, prompts: Iterable[dict[str, Tensor]], given: Mapping[str, Any]
) -> str:
    """The recipe of a method for this model, as YAML. Raises TokenpruneError where its settings mean nothing."""
    try:
        return yaml.safe_dump(fit(loaded.model, prompts, **given), sort_keys=False, width=100)
    except (ValueError, TypeError) as error:
        raise TokenpruneError(f"calibration {name!r}: {error}") from error


def collapse_layer(loaded: Loaded, prompts: Iterable[dict[str, Tensor]]) -> Calibrated:
    """Measure the Entropy Collapse Layer with one unpruned prefill per prompt, and remember it for these weights."""
    anatomy = Anatomy.of(loaded.model)
    curves = []
    for inputs in prompts:
        visual = partial(anatomy.visual, inputs["input_ids"])
        prefill = partial(loaded.model, **inputs)
        curves.append(ecl.layer_entropies(anatomy.adapter, anatomy.decoder, visual, prefill))
    means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
    found = ecl.collapse(means)
    interval = stability(np.array(curves), seed=0)["ecl"]["drop_interval"]
    path = ecl.remember(loaded.model, anatomy.adapter, means)
    shipped = ecl.shipped(str(loaded.model.config._name_or_path), len(means))
    return Calibrated(means, found, interval, path, shipped)
