"""Gemma 3 (arXiv 2503.19786): a square grid per picture, seen both ways; sliding windows."""

from __future__ import annotations

import math
from typing import Any

from ..parts.adapter import Adapter
from .forms.gemma3 import TINY
from .grid_tower import GridTower


class Gemma3Adapter(Adapter):
    """`Gemma3ForConditionalGeneration`."""

    model_types = ("gemma3",)
    tiny = TINY

    def vision_adapter(self) -> GridTower:
        return GridTower(side=_side)


def _side(config: Any) -> int:
    """Patches of a row that are pooled to one token."""
    vision = config.vision_config
    return vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)
