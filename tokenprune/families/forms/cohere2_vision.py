"""Aya Vision and Command A Vision as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny
from .siglip import siglip

if TYPE_CHECKING:
    from torch import Tensor


def settings() -> dict[str, Any]:
    """The config of both: two sliding blocks before each full one, which has no RoPE; four patches share a token."""
    text = tiny.text_config(
        model_type="cohere2",
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * (tiny.DEPTH // 3),
        logit_scale=1.0,
    )
    return {"text_config": text, "vision_config": siglip(), "downsample_factor": 2}


def build_aya() -> Any:
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration

    return AyaVisionForConditionalGeneration(AyaVisionConfig(**settings(), image_token_index=tiny.IMAGE))


def build_cohere() -> Any:
    from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration

    config = Cohere2VisionConfig(**settings(), image_token_id=tiny.IMAGE, alignment_intermediate_size=64)
    return Cohere2VisionForConditionalGeneration(config)


def media_aya(kind: str, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    tiles = (1, 3, 5)[seed % 3]  # the whole picture alone, or behind two or four tiles
    tile, begin, end, part, whole = [tiny.IMAGE] * 4, 3, 4, 7, 8
    ids = [begin, *[part, *tile] * (tiles - 1), whole, *tile, end]
    return ids, {"pixel_values": tiny.normal(seed, tiles, 3, 32, 32)}


def media_cohere(kind: str, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    tiles = (1, 3, 5)[seed % 3]
    tile, begin, end, line = [tiny.IMAGE] * 4, 3, 4, 7
    return [begin, *[*tile, line] * tiles, end], {"pixel_values": tiny.normal(seed, tiles, 3, 32, 32)}


TINY = (tiny.Tiny("aya_vision", build_aya, media_aya), tiny.Tiny("cohere2_vision", build_cohere, media_cohere))
