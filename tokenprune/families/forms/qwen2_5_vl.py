"""Qwen2.5-VL as models."""

from __future__ import annotations

import math
from typing import Any

from ...parts import published, tiny
from .packed import BLOCKS, VISION, media


def follows(depth: int, width: int) -> dict[str, Any]:
    """Every fourth block sees the whole picture, which becomes as wide as the text."""
    every = max(1, math.ceil(depth / 4))
    return {"fullatt_block_indexes": list(range(every - 1, depth, every)), "out_hidden_size": width}


PUBLISHED = published.Published(
    "qwen2.5-vl-7b",
    published.Sizes(28, 3584, 18944, 28, 4, 128, family="qwen2_5_vl", vision_depth=33),
    config={"model_type": "qwen2_5_vl", "image_token_id": published.IMAGE, "video_token_id": published.VIDEO},
    vision={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    },
    text={
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
    },
    pixels={"pixel_values": (48 * 48, 3 * 2 * 14 * 14)},
    numbers={"image_grid_thw": [[1, 48, 48]]},
    marks={"mm_token_type_ids": 1},
    follows=follows,
)


def build() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=tiny.text_config(rope_parameters=rope),
        vision_config={**VISION, **BLOCKS, "window_size": 16, "fullatt_block_indexes": [1]},
        image_token_id=tiny.IMAGE,
        video_token_id=tiny.VIDEO,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


TINY = tiny.Tiny("qwen2_5_vl", build, media, video=True, types="mm_token_type_ids")
