"""Llama 4: tiles of a picture, then the whole picture; chunked attention, blocks without RoPE, experts."""

from __future__ import annotations

from typing import Any

from ..parts.adapter import Adapter
from .forms.llama4 import TINY
from .llama4_tower import Llama4Tower


class Llama4Adapter(Adapter):
    """`Llama4ForConditionalGeneration`."""

    model_types = ("llama4",)
    tiny = (TINY,)

    def longest(self, config: Any) -> int | None:
        """Blocks without RoPE scale queries by their place in the cache, which is 1 up to here."""
        text = config.get_text_config()
        return int(text.floor_scale) - 1 if text.attn_temperature_tuning else None

    def vision_adapter(self) -> Llama4Tower:
        return Llama4Tower()
