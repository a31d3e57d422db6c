"""Gemma 4: any resolution, pictures and videos; sliding windows, shared keys, inputs per layer."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.gemma4 import TINY
from .gemma4_tower import Gemma4Tower


class Gemma4Adapter(Adapter):
    """`Gemma4ForConditionalGeneration`."""

    model_types = ("gemma4",)
    tiny = TINY

    def vision_adapter(self) -> Gemma4Tower:
        return Gemma4Tower()
