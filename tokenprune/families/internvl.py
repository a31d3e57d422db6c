"""InternVL 3 and 3.5 (arXiv 2504.10479, 2508.18265): tiles of a picture, then the whole picture."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.internvl import TINY
from .grid_tower import GridTower


class InternVLAdapter(Adapter):
    """`InternVLForConditionalGeneration`."""

    model_types = ("internvl",)
    tiny = (TINY,)

    def vision_adapter(self) -> GridTower:
        return GridTower(attention="attention", side=lambda config: round(1 / config.downsample_ratio))
