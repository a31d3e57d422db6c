"""Video-LLaVA as models."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

from ...parts import published, tiny
from .clip_llama import LLAMA, LLAMA_7B, clip_large

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = published.Published(
    "video-llava-7b",
    published.Sizes(**LLAMA_7B, family="video_llava", vision_depth=24, pictures=8, cls=1),
    config={"model_type": "video_llava", "image_token_index": published.IMAGE, "video_token_index": published.VIDEO},
    vision=clip_large(224),
    text=LLAMA,
    pixels={"pixel_values_videos": (1, 8, 3, 224, 224)},
    visual=2056,  # a video of 8 frames
    placeholder=published.VIDEO,
)


def build() -> Any:
    from transformers import LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    config = VideoLlavaConfig(
        vision_config=tiny.vision_config(),
        text_config=LlamaConfig(**tiny.text_config()),
        image_token_index=tiny.IMAGE,
        video_token_index=tiny.VIDEO,
    )
    return VideoLlavaForConditionalGeneration(config)


@cache
def pictures() -> str:
    """The input for pictures: transformers renamed it on the way from 5.19 to 5.23."""
    from transformers import VideoLlavaForConditionalGeneration

    taken = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    return next(name for name in ("pixel_values", "pixel_values_images") if name in taken)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    if kind == "video":
        return 2 * 17, {"pixel_values_videos": tiny.normal(seed, 1, 2, 3, 32, 32)}
    return 16, {pictures(): tiny.normal(seed, 1, 3, 32, 32)}


TINY = tiny.Tiny("video_llava", build, media, video=True)
