"""Aya Vision (arXiv 2505.08751) and Command A Vision: tiles of a picture, then the whole picture."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.cohere2_vision import TINY
from .grid_tower import GridTower


class Cohere2VisionAdapter(Adapter):
    """`AyaVisionForConditionalGeneration` and `Cohere2VisionForConditionalGeneration`."""

    model_types = ("aya_vision", "cohere2_vision")
    tiny = TINY

    def vision_adapter(self) -> GridTower:
        return GridTower(side=lambda config: config.downsample_factor)
