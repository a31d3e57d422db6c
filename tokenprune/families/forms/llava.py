"""LLaVA-1.5 as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import published, tiny
from .clip_llama import LLAMA, LLAMA_7B, clip_large

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = published.Published(
    "llava-1.5-7b",
    published.Sizes(**LLAMA_7B, family="llava", vision_depth=24),
    config={"model_type": "llava", "image_token_index": published.IMAGE},
    vision=clip_large(336),
    text=LLAMA,
    pixels={"pixel_values": (1, 3, 336, 336)},
    visual=576,
)


def build() -> Any:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(**tiny.text_config())
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tiny.vision_config(), text_config=text, image_token_index=tiny.IMAGE)
    )


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    return 16, {"pixel_values": tiny.normal(seed, 1, 3, 32, 32)}


TINY = tiny.Tiny("llava", build, media)
