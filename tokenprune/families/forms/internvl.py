"""InternVL as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor


def build() -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "layer_scale_init_value": 1.0,
    }
    config = InternVLConfig(
        text_config={"model_type": "qwen3", **tiny.text_config(head_dim=16)},
        vision_config=vision,
        image_token_id=tiny.IMAGE,
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    tiles = (1, 3, 5)[seed % 3]  # the whole picture alone, or behind two or four tiles
    return [3, *[tiny.IMAGE] * 4 * tiles, 4], {"pixel_values": tiny.normal(seed, tiles, 3, 32, 32)}


TINY = tiny.Tiny("internvl", build, media)
