"""Gemma 3 (arXiv 2503.19786): a square grid per picture, seen both ways; sliding windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import repeat

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.gemma3 import TINY
from .grids import grid_boxes


class Gemma3Adapter(Adapter):
    """`Gemma3ForConditionalGeneration`. The crops of pan and scan are pictures of their own."""

    model_types = ("gemma3",)
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = math.isqrt(given.config.mm_tokens_per_image)
        return {given.config.image_token_id: repeat(grid_boxes(1, side, side))}
