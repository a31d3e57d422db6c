"""A picture and questions about it, and what is left of the picture as one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..media import read_image
from ..pico import scenes

QUESTIONS = {
    "exists": "is there a red circle?",
    "color": "what color is the square?",
    "count": "how many circles are there?",
    "digit": "what digit is blue?",
    "read": "read the digits",
}
"""Asked about a picture whose truth is not known, by kind."""

SIDE, GAP, WORDS = 288, 16, 52  # pixels of a sheet's pictures, between them, and of the words below


@dataclass(frozen=True)
class Shown:
    """What is asked about.

    Attributes:
        picture: as it is given to the processor.
        questions: by kind.
        truths: right answers by kind, where they are known.
    """

    picture: Image.Image
    questions: Mapping[str, str]
    truths: Mapping[str, str]

    @classmethod
    def drawn(cls, seed: int) -> Shown:
        """A scene that pico draws, with the questions about it."""
        scene = next(iter(scenes.held_out(seed)))
        asked = {question.kind: question.text for question in scene.questions}
        return cls(scene.picture, asked, {question.kind: question.answer for question in scene.questions})

    @classmethod
    def of(cls, path: Path) -> Shown:
        """A picture of somebody's own: nobody knows the right answers. Raises MediaError."""
        return cls(read_image(path), QUESTIONS, {})


def sheet(panels: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Pictures side by side, each with up to two lines of words below."""
    drawn = Image.new("RGB", (GAP + len(panels) * (SIDE + GAP), SIDE + WORDS + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=17)
    for number, (picture, words) in enumerate(panels):
        left, shrink = GAP + number * (SIDE + GAP), SIDE / max(picture.size)
        size = (round(picture.width * shrink), round(picture.height * shrink))
        drawn.paste(picture.convert("RGB").resize(size, Image.Resampling.NEAREST), (left, GAP))
        pen.multiline_text((left, SIDE + GAP + 8), words, fill="#333333", font=font, spacing=5)
    return drawn
