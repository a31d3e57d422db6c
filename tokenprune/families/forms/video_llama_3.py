"""VideoLLaMA 3 as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor


def build() -> Any:
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    config = VideoLlama3Config(
        text_config={"model_type": "qwen2", **tiny.text_config()},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 4,
        },
        image_token_id=tiny.IMAGE,
        video_token_id=tiny.VIDEO,
    )
    return VideoLlama3ForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    """A picture of 16 or 24 tokens; a video of two frames of 8, of which the second lost the last three."""
    import torch

    frames, height, width, merged = (1, 4, 4 + 2 * (seed % 3 > 0), 1) if kind == "image" else (2, 4, 8, 2)
    patches = frames * height * width
    values, name = ("pixel_values", "image") if kind == "image" else ("pixel_values_videos", "video")
    given = {
        values: tiny.normal(seed, patches, 3 * 4 * 4),
        f"{name}_grid_thw": torch.tensor([[frames, height, width]]),
        f"{name}_merge_sizes": torch.tensor([merged]),
    }
    tokens = patches // merged**2
    if kind == "video":
        tokens -= 3
        given["video_compression_mask"] = torch.arange(tokens + 3) < tokens
    return tokens, given


TINY = tiny.Tiny("video_llama_3", build, media, video=True)
