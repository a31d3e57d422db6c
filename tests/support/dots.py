"""Bright dots in black pictures: which token shows one, and is that where an overlay puts it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from families import MIXED, RAGGED, has_video, inputs, model
from PIL import Image

import tokenprune
from tokenprune import Scorer
from tokenprune.registry import registry
from tokenprune.show import overlay

Rows = Sequence[Sequence[Image.Image | list[Image.Image]]]
"""Pictures and videos (lists of frames) of each prompt."""

# where dots go: never the same from left and from above, and inside what a centre crop leaves
PLACES = [(0.3, 0.55), (0.65, 0.42), (0.42, 0.27), (0.55, 0.78)]
BLACK: list[torch.Tensor] = []


@dataclass(frozen=True)
class Record(Scorer):
    """Remembers the tokens of black pictures."""

    def score(self, seen: Any) -> torch.Tensor:
        BLACK.append(seen.hidden.clone())
        return seen.columns.float()


@dataclass(frozen=True)
class Brightest(Scorer):
    """How far tokens are from those of black pictures."""

    black: Any = field(default_factory=lambda: iter(BLACK), compare=False)

    def score(self, seen: Any) -> torch.Tensor:
        return (seen.hidden - next(self.black)).norm(dim=-1)


def dotted(size: tuple[int, int], at: tuple[float, float] | None, side: int = 5) -> Image.Image:
    """A black picture with a bright dot around a place given as shares of width and height."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if at is not None:
        x, y = round(at[0] * size[0]), round(at[1] * size[1])
        pixels[max(0, y - side // 2) : y + side // 2 + 1, max(0, x - side // 2) : x + side // 2 + 1] = 255
    return Image.fromarray(pixels)


def keep_brightest(
    lm: Any, made: Callable[[Rows], dict[str, Any]], rows: Rows, keep: int = 1
) -> tuple[Any, dict[str, Any]]:
    """The pruning after `generate` kept the tokens of these pictures that differ most from those of black ones.

    `made` gives the model inputs of pictures and videos (lists of frames).
    """
    black = [
        [
            dotted(item.size, None) if isinstance(item, Image.Image) else [dotted(f.size, None) for f in item]
            for item in row
        ]
        for row in rows
    ]
    BLACK.clear()
    for scorer, pictures in ((Record(), black), (Brightest(), rows)):
        given = made(pictures)
        schedule = {"name": "fixed", "layer": 0, "keep": keep}
        with tokenprune.prune(lm, {"prune": [{"scorer": scorer, "schedule": schedule}]}) as pruning:
            lm.generate(**given, max_new_tokens=1, do_sample=False)
    return pruning, given


def panels(drawn: Image.Image, count: int) -> list[np.ndarray]:
    """The panels of a strip of equal ones."""
    pixels = np.asarray(drawn).astype(int)
    width = (pixels.shape[1] - overlay.GAP * (count - 1)) // count
    return [pixels[:, i * (width + overlay.GAP) :][:, :width] for i in range(count)]


def check(panel: np.ndarray, original: Image.Image, at: tuple[float, float], patch: tuple[float, float]) -> None:
    """Untouched are the pixels of one patch, and the dot is in it."""
    untouched = (panel == np.asarray(original)).all(-1)
    rows, columns = (untouched.any(axis).nonzero()[0] for axis in (1, 0))
    assert untouched.sum() == len(rows) * len(columns) > 0  # one rectangle
    assert len(columns) <= np.ceil(patch[0])
    assert len(rows) <= np.ceil(patch[1])
    x, y = at[0] * original.width, at[1] * original.height
    assert columns[0] <= x <= columns[-1] + 1
    assert rows[0] <= y <= rows[-1] + 1


def places_of_a_batch(family: str) -> list[tuple[torch.Tensor, list[overlay.Placed]]]:
    """Of each prompt of a ragged batch, its token ids and what an overlay finds of its pictures and videos.

    They are as many as the prompt has, in its order, and share its visual columns among them.
    """
    prompts = MIXED if has_video(family) else RAGGED
    given, config = inputs(family, prompts), model(family).config
    adapter = registry().adapter(config)
    visual = adapter.visual(config, given["input_ids"])
    places = []
    for row, (_, segments) in enumerate(prompts):
        found = overlay.placed(adapter, config, given["input_ids"], visual, given, row)
        assert len(found) == sum(isinstance(segment, str) for segment in segments)
        columns = torch.cat([picture.columns for picture in found]) if found else torch.empty(0, dtype=torch.int64)
        assert torch.equal(columns, visual[row].nonzero()[:, 0])
        places.append((given["input_ids"][row], found))
    return places
