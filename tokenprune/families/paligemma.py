"""PaliGemma 1 and 2 (arXiv 2407.07726, 2412.03555): a square grid per picture, before a prefix seen both ways."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .clip_tower import ClipTower
from .forms.paligemma import TINY


class PaliGemmaAdapter(Adapter):
    """`PaliGemmaForConditionalGeneration`."""

    model_types = ("paligemma",)
    tiny = TINY

    def vision_adapter(self) -> ClipTower:
        return ClipTower()
