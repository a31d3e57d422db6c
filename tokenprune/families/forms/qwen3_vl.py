"""Qwen3-VL and its mixture of experts as models."""

from __future__ import annotations

from typing import Any

from ...parts import tiny
from .packed import BLOCKS, VISION, media_of_one_pair

IDS = {"image_token_id": tiny.IMAGE, "video_token_id": tiny.VIDEO, "vision_start_token_id": 3, "vision_end_token_id": 4}

# What the tower's first two blocks give is added after the decoder's first two.
TOWER = {**VISION, **BLOCKS, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


def text(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    return tiny.text_config(head_dim=16, rope_parameters=rope, **more)


def build() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text(), vision_config=TOWER, **IDS))


def build_moe() -> Any:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = Qwen3VLMoeConfig(text_config=text(**experts), vision_config=TOWER, **IDS)
    return Qwen3VLMoeForConditionalGeneration(config)


TINY = tuple(
    tiny.Tiny(name, make, media_of_one_pair, video=True, types="mm_token_type_ids")
    for name, make in (("qwen3_vl", build), ("qwen3_vl_moe", build_moe))
)
