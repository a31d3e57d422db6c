"""Llama 4: tiles of a picture, then the whole picture; chunked attention, blocks without RoPE, experts."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.llama4 import TINY
from .llama4_tower import Llama4Tower


class Llama4Adapter(Adapter):
    """`Llama4ForConditionalGeneration`."""

    model_types = ("llama4",)
    tiny = (TINY,)

    def vision_adapter(self) -> Llama4Tower:
        return Llama4Tower()
