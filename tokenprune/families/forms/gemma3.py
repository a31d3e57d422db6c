"""Gemma 3 as models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ...parts import tiny
from .siglip import siglip

if TYPE_CHECKING:
    from torch import Tensor


def build(window: int) -> Any:
    """Two sliding blocks before each that sees everything; four patches share a token."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny.text_config(
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=window,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * (tiny.DEPTH // 3),
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=siglip(patch=4),
        mm_tokens_per_image=16,
        image_token_index=tiny.IMAGE,
        boi_token_index=3,
        eoi_token_index=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # zeros as it is made
    return model


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    return 16, {"pixel_values": tiny.normal(seed, 1, 3, 32, 32)}


TINY = (
    tiny.Tiny("gemma3", partial(build, 8), media, types="token_type_ids"),
    tiny.Tiny("gemma3_wide", partial(build, 48), media, types="token_type_ids"),
)
