"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): tiles of a picture, then the whole picture."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.idefics3 import TINY
from .grid_tower import GridTower


class Idefics3Adapter(Adapter):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    model_types = ("idefics3", "smolvlm")
    tiny = TINY

    def vision_adapter(self) -> GridTower:
        return GridTower(names=("vision_model",), connector="connector", side=lambda config: config.scale_factor)
