"""Qwen2-VL as models."""

from __future__ import annotations

from typing import Any

from ...parts import tiny
from .packed import VISION, media


def build() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=tiny.text_config(rope_parameters=rope),
        vision_config={"depth": 3, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64, **VISION},
        image_token_id=tiny.IMAGE,
        video_token_id=tiny.VIDEO,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    return Qwen2VLForConditionalGeneration(config)


TINY = tiny.Tiny("qwen2_vl", build, media, video=True, types="mm_token_type_ids")
