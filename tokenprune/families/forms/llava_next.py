"""LLaVA-NeXT as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import published, tiny
from .clip_llama import LLAMA, LLAMA_7B, clip_large

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = published.Published(
    "llava-next-7b",
    published.Sizes(**LLAMA_7B, family="llava_next", vision_depth=24, pictures=5),
    config={
        "model_type": "llava_next",
        "image_token_index": published.IMAGE,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    vision=clip_large(336),
    text=LLAMA,
    pixels={"pixel_values": (1, 5, 3, 336, 336)},
    numbers={"image_sizes": [[672, 672]]},
    visual=2880,  # its largest picture, without newlines
)

SIZES = {(40, 60): (3, 70), (64, 30): (3, 56), (64, 64): (5, 88)}
"""Height and width of the tiny model's pictures: their tiles, and their tokens with newlines."""


def build() -> Any:
    from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=tiny.vision_config(),
        text_config=LlamaConfig(**tiny.text_config(num_key_value_heads=4)),
        image_token_index=tiny.IMAGE,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )
    return LlavaNextForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    import torch

    size = [*SIZES][seed % len(SIZES)]
    tiles, tokens = SIZES[size]
    pixels = torch.zeros(1, 5, 3, 32, 32)
    pixels[0, :tiles] = tiny.normal(seed, tiles, 3, 32, 32)
    return tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


TINY = tiny.Tiny("llava_next", build, media)
