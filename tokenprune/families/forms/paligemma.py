"""PaliGemma 1 and 2 as models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ...parts import tiny
from .siglip import siglip

if TYPE_CHECKING:
    from torch import Tensor

GEMMA2 = {
    "model_type": "gemma2",
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * (tiny.DEPTH // 2),
}


def build(**text: Any) -> Any:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config={**tiny.text_config(head_dim=16), **text},
        vision_config=siglip(),
        image_token_index=tiny.IMAGE,
        projection_dim=64,
        hidden_size=64,
        vocab_size=tiny.VOCAB,
    )
    return PaliGemmaForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    return 16, {"pixel_values": tiny.normal(seed, 1, 3, 32, 32)}


PREFIX: Any = {"types": "token_type_ids", "kinds": (0, 0, 0)}
"""The prefix is zeros, and the whole prompt is prefix: its tokens see each other both ways."""

TINY = (
    tiny.Tiny("paligemma", partial(build, model_type="gemma"), media, **PREFIX),
    tiny.Tiny("paligemma_untyped", partial(build, model_type="gemma"), media),
    tiny.Tiny("paligemma2", partial(build, **GEMMA2), media, **PREFIX),
    tiny.Tiny("paligemma2_untyped", partial(build, **GEMMA2), media),
)
