"""Qwen3.5 (Qwen3.6 too) and its mixture of experts as models: two of three blocks are linear."""

from __future__ import annotations

from typing import Any

from ...parts import tiny
from .packed import BLOCKS, VISION, media_of_one_pair
from .qwen3_vl import IDS

TOWER = {**VISION, **BLOCKS, "num_position_embeddings": 64}


def text(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    half = rope | {"partial_rotary_factor": 0.5}
    linear = {f"linear_{kind}_head_dim": 16 for kind in ("key", "value")}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    types = ["linear_attention", "linear_attention", "full_attention"] * (tiny.DEPTH // 3)
    return tiny.text_config(head_dim=32, rope_parameters=half, layer_types=types, **linear, **heads, **more)


def build() -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text(), vision_config=TOWER, **IDS))


def build_moe() -> Any:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sizes = text(**experts, shared_expert_intermediate_size=32)
    return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=sizes, vision_config=TOWER, **IDS))


TINY = tuple(
    tiny.Tiny(name, make, media_of_one_pair, video=True, types="mm_token_type_ids")
    for name, make in (("qwen3_5", build), ("qwen3_5_moe", build_moe))
)
