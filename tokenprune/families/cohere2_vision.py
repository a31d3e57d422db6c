"""Aya Vision (arXiv 2505.08751) and Command A Vision: tiles of a picture, then the whole picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..parts.adapter import Adapter
from ..parts.attention import Attention
from .forms.cohere2_vision import TINY


class Cohere2VisionAdapter(Adapter):
    """`AyaVisionForConditionalGeneration` and `Cohere2VisionForConditionalGeneration`."""

    model_types = ("aya_vision", "cohere2_vision")
    tiny = TINY

    def attention(self, block: Any) -> Attention | None:
        """Blocks without a window have no RoPE."""
        found = super().attention(block)
        return found if found is None or block.self_attn.sliding_window else replace(found, turn=None)
