"""Qwen2.5-VL (arXiv 2502.13923): any resolution, pictures and videos, M-RoPE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ..parts.adapter import RotaryTables
from ..parts.vision import VisionAdapter
from .decoder import LlamaStyleAdapter
from .grids import grid_boxes
from .towers import WindowTower


class Qwen2_5VLAdapter(LlamaStyleAdapter):
    """`Qwen2_5_VLForConditionalGeneration`. M-RoPE positions are places in a picture: they are never renumbered."""

    model_types = ("qwen2_5_vl",)
    placeholders = ("image_token_id", "video_token_id")

    def rotary(self, decoder: Any, hidden: Tensor, positions: Int[Tensor, "b s"]) -> RotaryTables | None:
        return None

    def boxes(self, config: Any, inputs: Mapping[str, Any]) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        merged = config.vision_config.spatial_merge_size
        return {
            token: [grid_boxes(int(t), int(h) // merged, int(w) // merged) for t, h, w in inputs.get(grids, ())]
            for token, grids in (
                (config.image_token_id, "image_grid_thw"),
                (config.video_token_id, "video_grid_thw"),
            )
        }

    def vision_adapter(self) -> VisionAdapter:
        return WindowTower()
