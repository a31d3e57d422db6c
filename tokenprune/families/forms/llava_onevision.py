"""LLaVA-OneVision as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny
from .siglip import siglip

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {(40, 60): (5, 16 + 48 + 6), (64, 30): (3, 16 + 32 + 8), (64, 64): (5, 16 + 36 + 6)}
"""Height and width of the tiny model's pictures: their tiles, and their tokens: the whole picture's, those of its tiles
(64 of the last become 36: they are more than `anyres_max_3` allows), and newlines."""


def build() -> Any:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config={"model_type": "qwen2", **tiny.text_config()},
        image_token_index=tiny.IMAGE,
        video_token_index=tiny.VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_aspect_ratio="anyres_max_3",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    import torch

    if kind == "video":
        return 3 * 4 + 1, {"pixel_values_videos": tiny.normal(seed, 1, 3, 3, 32, 32)}
    size = [*SIZES][seed % len(SIZES)]
    tiles, tokens = SIZES[size]
    pixels = torch.zeros(1, 5, 3, 32, 32)
    pixels[0, :tiles] = tiny.normal(seed, tiles, 3, 32, 32)
    return tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


TINY = tiny.Tiny("llava_onevision", build, media, video=True)
