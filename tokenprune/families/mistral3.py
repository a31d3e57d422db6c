"""Mistral Small 3 and Ministral 3: any resolution, a text token after each row."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.mistral3 import TINY
from .pixtral_tower import PixtralTower


class Mistral3Adapter(Adapter):
    """`Mistral3ForConditionalGeneration`."""

    model_types = ("mistral3",)
    tiny = TINY

    def vision_adapter(self) -> PixtralTower:
        return PixtralTower()
