"""Small pictures with questions about them: coloured shapes and handwritten digits on a dark ground.

Only numpy and pillow are needed. The handwriting that ships with the package (`digits.npz`) was kept out of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96  # pixels a side
CELL = 24  # objects sit in a grid of cells this wide
GRID = SIZE // CELL
KINDS = ("exists", "color", "count", "digit", "read")
SHAPES = ("circle", "square", "triangle", "cross")
PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COLORS = {
    "red": (235, 50, 50),
    "green": (60, 205, 70),
    "blue": (75, 105, 250),
    "yellow": (240, 220, 60),
    "purple": (205, 70, 225),
}


@dataclass(frozen=True)
class Question:
    """One question with its only right answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Thing:
    """One object of a picture: a shape's name or a digit, its colour and its box (left, top, side)."""

    name: str
    color: str
    box: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture, the questions about it, and what was drawn, in reading order."""

    picture: Image.Image
    questions: list[Question]
    things: list[Thing]


def sprite(
    digit: np.ndarray, side: int, angle: float = 0.0, stretch: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """An 8x8 digit enlarged to a `side`-pixel mask, turned by `angle` degrees, widened and moved (in source pixels)."""
    source = Image.fromarray(np.pad(digit, 2))  # the border keeps turned corners
    center, scale = 6.0, 8.0 / side
    cos, sin = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    a, b, d, e = cos / stretch, sin / stretch, -sin, cos
    half = side / 2
    c, f = center - shift[0] - (a + b) * half, center - shift[1] - (d + e) * half
    turn = (a, b, c, d, e, f)
    return np.asarray(source.transform((side, side), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR))


@lru_cache(maxsize=64)
def _shape(name: str, side: int) -> np.ndarray:
    """The mask of a shape, smoothed by drawing it four times as large."""
    big = 4 * side
    mask = Image.new("L", (big, big))
    pen, end = ImageDraw.Draw(mask), big - 1
    if name == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif name == "square":
        pen.rectangle((big // 12, big // 12, end - big // 12, end - big // 12), fill=255)
    elif name == "triangle":
        pen.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    else:
        pen.rectangle((big // 3, 0, end - big // 3, end), fill=255)
        pen.rectangle((0, big // 3, end, end - big // 3), fill=255)
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX))


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A dark ground: a tint, a slope of light and fine noise."""
    line = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    slope = rng.uniform(-25, 25, 2).astype(np.float32)
    light = slope[0] * line[:, None] + slope[1] * line[None, :]
    tint = rng.uniform(15, 60, 3).astype(np.float32)
    noise = rng.random((SIZE, SIZE), dtype=np.float32) * rng.uniform(0, 16)
    return (light + noise)[:, :, None] + tint


def _pick(rng: np.random.Generator, options: list, every: bool) -> list:
    """All options in random order, or one of them."""
    order = [options[i] for i in rng.permutation(len(options))]
    return order if every else order[:1]


def _ask(rng: np.random.Generator, things: list[Thing], main: str, every: bool) -> list[Question]:
    """One question of each kind that has one, or with `every` all there are (`exists` four times)."""
    shapes = [t for t in things if t.name in SHAPES]
    digits = [t for t in things if t.name not in SHAPES]
    often = Counter(t.name for t in shapes)
    hues = Counter(t.color for t in digits)
    present = sorted({(t.color, t.name) for t in shapes})
    names, colors = sorted(often), sorted({t.color for t in things})
    absent = [(c, n) for c in colors for n in names if (c, n) not in present]  # both parts are there, not together
    absent = absent or [(c, n) for c in COLORS for n in names if (c, n) not in present]
    asked = []
    for yes in (True, True, False, False) if every else (bool(rng.integers(2)),):
        color, name = (present if yes else absent)[rng.integers(len(present if yes else absent))]
        asked.append(Question("exists", f"is there a {color} {name}?", "yes" if yes else "no"))
    for t in _pick(rng, [t for t in shapes if often[t.name] == 1], every):
        asked.append(Question("color", f"what color is the {t.name}?", t.color))
    for name in _pick(rng, names, True) if every else [main]:
        asked.append(Question("count", f"how many {PLURAL[name]} are there?", str(often[name])))
    for t in _pick(rng, [t for t in digits if hues[t.color] == 1], every):
        asked.append(Question("digit", f"what digit is {t.color}?", t.name))
    if digits:
        asked.append(Question("read", "read the digits", " ".join(t.name for t in digits)))
    return asked


def draw(
    rng: np.random.Generator,
    digits: np.ndarray,
    labels: np.ndarray,
    *,
    same: int = 4,
    others: int = 2,
    written: int = 3,
    every: bool = False,
) -> Scene:
    """Draw a scene: 1 to `same` of one shape, up to `others` other shapes and 1 to `written` digits.

    `digits` are 8x8 grey pictures, enlarged here, or larger masks (up to a cell wide), drawn as they are. With more
    than one of the first shape there is at least one other, so that a shape with one clear colour is always there.
    """
    palette = list(COLORS)
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    count = int(rng.integers(1, same + 1))
    extra = int(rng.integers(count > 1, max(others, int(count > 1)) + 1))
    names: list = [kinds[0]] * count + kinds[1 : 1 + extra]
    colors = [palette[i] for i in rng.integers(0, len(palette), len(names))]
    picks = rng.integers(0, len(digits), rng.integers(1, written + 1))
    hues = rng.integers(0, len(palette), len(picks))
    while max(Counter(hues.tolist()).values()) == len(hues) > 1 or (len(hues) == 2 and hues[0] == hues[1]):
        hues = rng.integers(0, len(palette), len(picks))  # at least one digit has a colour of its own
    names += picks.tolist()
    colors += [palette[i] for i in hues]
    cells = rng.permutation(GRID * GRID)[: len(names)]
    canvas, things = _ground(rng), []
    for i in np.argsort(cells):
        name, color, cell = names[i], colors[i], int(cells[i])
        if isinstance(name, str):
            mask = _shape(name, int(rng.integers(18, 23)))
        else:
            mask, name = digits[name], str(labels[name])
            mask = sprite(mask, int(rng.integers(18, 23))) if mask.shape[0] == 8 else mask
        side = mask.shape[0]
        left, top = (CELL * np.array([cell % GRID, cell // GRID]) + rng.integers(0, CELL - side + 1, 2)).tolist()
        paint = np.array(COLORS[color], np.float32) * np.float32(rng.uniform(0.8, 1.0)) + rng.normal(0, 8, 3)
        spot = canvas[top : top + side, left : left + side]
        spot += (mask.astype(np.float32) / 255)[:, :, None] * (paint.astype(np.float32) - spot)
        things.append(Thing(name, color, (left, top, side)))
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return Scene(picture, _ask(rng, things, kinds[0], every), things)


@lru_cache(maxsize=1)
def held_out_digits() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits no training picture has shown: (n, 8, 8) grey pictures and their labels."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        return file["digits"], file["labels"]


def held_out(seed: int = 0) -> Iterator[Scene]:
    """Endless scenes with held-out handwriting, one question of each kind; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw(rng, *held_out_digits())
