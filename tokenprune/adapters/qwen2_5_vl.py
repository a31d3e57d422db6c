"""Qwen2.5-VL (arXiv 2502.13923): any resolution, pictures and videos, M-RoPE."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..interfaces import RotaryTables, TowerAdapter
from .decoder import LlamaStyleAdapter
from .towers import WindowTower


class Qwen2_5VLAdapter(LlamaStyleAdapter):
    """`Qwen2_5_VLForConditionalGeneration`. M-RoPE positions are places in a picture: they are never renumbered."""

    model_types = ("qwen2_5_vl",)
    placeholders = ("image_token_id", "video_token_id")

    def rotary(self, decoder: Any, hidden: Tensor, positions: Int[Tensor, "b s"]) -> RotaryTables | None:
        return None

    def tower(self) -> TowerAdapter:
        return WindowTower()
