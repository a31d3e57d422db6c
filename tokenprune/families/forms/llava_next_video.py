"""LLaVA-NeXT-Video as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny
from . import llava_next

if TYPE_CHECKING:
    from torch import Tensor


def build() -> Any:
    from transformers import LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    config = LlavaNextVideoConfig(
        vision_config=tiny.vision_config(),
        text_config=LlamaConfig(**tiny.text_config()),
        image_token_index=tiny.IMAGE,
        video_token_index=tiny.VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )
    return LlavaNextVideoForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    if kind == "video":
        return 3 * 4, {"pixel_values_videos": tiny.normal(seed, 1, 3, 3, 32, 32)}
    return llava_next.media(kind, seed)


TINY = tiny.Tiny("llava_next_video", build, media, video=True)
