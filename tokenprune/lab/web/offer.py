"""What the page shows at first: scenes with their questions, a recipe, and the model it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from ...plan.cost import DecoderSize
from ...recipe import registered
from ..loading import PICO, Loaded
from ..pico import scenes
from .settings import NO_PRESET, upload

SCENES = 5

KNOWN = (  # what the bundled model was trained on: scenes.py draws it
    f"It knows {', '.join(scenes.PLURAL.values())} and handwritten digits in {', '.join(scenes.COLORS)}, drawn as "
    "here, and these questions in just these words: on anything else it guesses."
)


@dataclass(frozen=True)
class Offer:
    """What the page shows at first.

    Attributes:
        scenes: examples to choose from.
        picture: shown before one is chosen.
        recipe: chosen at first, as it was given.
        base: its name or path without the preset.
        preset: its preset, or `NO_PRESET`.
        depth: decoder blocks of the model.
        about: the model in a sentence or two, as Markdown.
    """

    scenes: Sequence[scenes.Scene]
    picture: Image.Image
    recipe: str
    base: str
    preset: str
    depth: int
    about: str

    @classmethod
    def of(cls, loaded: Loaded, recipe: str, image: Path | None, seed: int) -> Offer:
        """Arguments as in `build`. Raises MediaError if the picture cannot be read."""
        base, _, preset = recipe.rpartition("@")
        if not (base in registered() or Path(base).is_file()):
            base, preset = recipe, ""
        drawn = list(islice(scenes.held_out(seed), SCENES))
        picture = drawn[0].picture if image is None else upload(image)
        name = Path(str(loaded.model.config._name_or_path)).name
        about = f"The same question to **{name}**, with all visual tokens and with some dropped."
        about += f" {KNOWN}" if name == PICO.name else ""
        depth = DecoderSize.of(loaded.model.config).depth
        return cls(drawn, picture, recipe, base, preset or NO_PRESET, depth, about)

    def truths(self, scene: int = 0) -> dict[str, str]:
        """Right answers by question."""
        return {question.text: question.answer for question in self.scenes[scene].questions}
