"""Gemma 3 (arXiv 2503.19786): a square grid per picture, seen both ways; sliding windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.gemma3 import TINY
from .grid_tower import GridTower
from .grids import grid_boxes


class Gemma3Adapter(Adapter):
    """`Gemma3ForConditionalGeneration`. The crops of pan and scan are pictures of their own."""

    model_types = ("gemma3",)
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = math.isqrt(given.config.mm_tokens_per_image)
        return {given.config.image_token_id: repeat(grid_boxes(1, side, side))}

    def vision_adapter(self) -> GridTower:
        return GridTower(side=_side)


def _side(config: Any) -> int:
    """Patches of a row that are pooled to one token."""
    vision = config.vision_config
    return vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)
