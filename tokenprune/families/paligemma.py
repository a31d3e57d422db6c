"""PaliGemma 1 and 2 (arXiv 2407.07726, 2412.03555): a square grid per picture, before a prefix seen both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .clip_tower import ClipTower
from .forms.paligemma import TINY
from .grids import grid_boxes, tower_grid


class PaliGemmaAdapter(Adapter):
    """`PaliGemmaForConditionalGeneration`."""

    model_types = ("paligemma",)
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = tower_grid(given.config)
        return {given.config.image_token_id: repeat(grid_boxes(1, side, side))}

    def vision_adapter(self) -> ClipTower:
        return ClipTower()
