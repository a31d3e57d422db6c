"""A profile of a model on many pictures: a row for each, then what they say together, as files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ... import ecl
from ...api import Pruning, prune
from ...errors import MediaError
from ...model.anatomy import Anatomy
from ...parts.fact import Sample
from ...recipe import load
from .. import conditions, plots
from ..layers import read_layers
from ..loading import Loaded
from ..media import pictures, read_image
from ..pico import scenes
from ..results import Results
from . import rows as prompt_rows
from .means import collapse_of, summary

Shown = dict[str, Path | None]
"""Keys of rows, each with the file of its picture; None where a scene is drawn."""


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        shown: the pictures.
        data: where they come from, in words: `pico` or a folder.
        seed: which scenes are drawn, and of the bootstrap.
        question: asked about each.
        layers: blocks whose spectra are kept, as they were written; None for `default_layers`.
        recipe: passes inside the vision tower, by name; what they leave is measured.
    """

    shown: Shown
    data: str
    seed: int
    question: str
    layers: str | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class Profile:
    """What was measured, of `summary`'s form, and where it is written."""

    asked: Asked
    results: Results
    found: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Of tables and figures."""
        return f"{self._about}{'' if self.asked.recipe is None else f', {self.asked.recipe}'}"

    @property
    def _about(self) -> str:
        return f"{self.results.settings['model']}, {self.found['prompts']} pictures of {Path(self.asked.data).name}"

    def collapse(self, state: str) -> ecl.Collapse:
        """The layer that a state says."""
        return collapse_of(self.found, state)

    def entry(self) -> dict[str, Any]:
        """As in `configs/ecl/`: the layer that the queries say."""
        source = f"tokenprune profile, {self.found['prompts']} pictures of {Path(self.asked.data).name}"
        after = "" if self.asked.recipe is None else f", after {self.asked.recipe}"
        model = self.results.settings["model"]
        return self.collapse("queries").entry(model, f"{source}, seed {self.asked.seed}{after}")

    def save(self) -> list[Path]:
        """JSON and figures. Raises TokenpruneError if another run under other settings ended there meanwhile."""
        self.results.check()
        figures = {
            "entropy.png": partial(plots.entropy, self.found, self.title),
            "spectra.png": partial(plots.spectra, self.found, self.title),
        }
        return self.results.save({**self.found, "config": self.entry()}, figures=figures, indent=None)


def choose(data: str, limit: int, seed: int) -> Shown:
    """The pictures to show; a seed orders a folder the same whatever else is in it.

    Raises:
        MediaError: `data` is neither `pico` nor a folder of pictures.
    """
    if data == "pico":
        return {str(i): None for i in range(limit)}
    folder = Path(data)
    if not folder.is_dir():
        raise MediaError(f"expected --data pico or a folder of pictures, got {data}, which is no folder")
    order = sorted(pictures(folder), key=lambda path: hashlib.sha256(f"{seed} {path.name}".encode()).digest())
    return {f"{path.name} {path.stat().st_size}": path for path in order[:limit]}


def measure(
    loaded: Loaded,
    asked: Asked,
    output: Path,
    follow: Callable[[Sequence[tuple[str, Path | None]]], Iterable[tuple[str, Path | None]]] = iter,
) -> Profile:
    """One unpruned prefill per picture, whose row is written as it is done; rows that are there are read.

    Args:
        loaded: the model.
        asked: what to measure.
        output: folder of the results.
        follow: gives the pictures one after the other, behind a bar say.

    Raises:
        LayerError: `asked.layers` are no layers of this model, or it has one block.
        TokenpruneError: `output` holds results of other settings.
    """
    anatomy = Anatomy.of(loaded.model)
    chosen = read_layers(asked.layers, 1, anatomy.depth) or prompt_rows.default_layers(anatomy.depth)
    settings = {**conditions.of_rows("profile", loaded), "data": asked.data, "seed": asked.seed}
    settings |= {"ask": asked.question, "layers": chosen}
    settings |= {} if asked.recipe is None else {"recipe": repr(load(asked.recipe))}
    results = Results(output, "profile", settings)
    results.check()
    rows, drawn = results.rows, scenes.held_out(asked.seed)
    for key, path in follow(list(asked.shown.items())):
        scene = next(drawn)
        if key not in rows:
            inputs = loaded.inputs(asked.question, [read_image(path) if path else scene.picture])
            sample = Sample.of(loaded.model, anatomy.adapter, inputs)
            with nullcontext() if asked.recipe is None else prune(loaded.model, asked.recipe) as pruning:
                left = sample if pruning is None else replace(sample, visual=partial(_left, sample, pruning))
                rows.add(key, prompt_rows.row(anatomy, left, chosen))
    return Profile(asked, results, summary((rows[key] for key in asked.shown), asked.seed))


def _left(sample: Sample, pruning: Pruning) -> Bool[Tensor, "b s"]:
    """Columns of the decoder's blocks with the visual tokens that the tower left, now that the first of them runs."""
    return sample.visual() if pruning.state is None else pruning.state.entering_visual
