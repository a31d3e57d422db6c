"""Gemma 4 as models: the small ones share keys and have inputs per layer, the large ones have two-way pictures."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ((8, 8), (6, 8), (10, 4))
"""Rows and columns of patches of the tiny model's pictures."""

SMALL = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "use_double_wide_mlp": True}
LARGE = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}


def build(**special: Any) -> Any:
    """A full block after each sliding one; it has larger heads."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = tiny.text_config(
        head_dim=16,
        global_head_dim=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * (tiny.DEPTH // 2),
        vocab_size_per_layer_input=tiny.VOCAB,
        **special,
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    tokens = {"image_token_id": tiny.IMAGE, "video_token_id": tiny.VIDEO, "audio_token_id": 9}
    marks = {"boi_token_id": 3, "eoi_token_id": 4, "boa_token_id": 7, "eoa_token_index": 8}
    config = Gemma4Config(text_config={"model_type": "gemma4_text", **text}, vision_config=vision, **tokens, **marks)
    return Gemma4ForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    import torch

    pictures = 1 if kind == "image" else 2
    rows, columns = SIDES[seed % len(SIDES)]
    patches = rows * columns
    pixels, places = torch.zeros(pictures, 64, 3 * 4 * 4), torch.full((pictures, 64, 2), -1)
    pixels[:, :patches] = tiny.normal(seed, pictures, patches, 3 * 4 * 4)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places[:, :patches] = torch.stack([x, y], dim=-1).reshape(1, patches, 2)
    if kind == "image":
        return patches // 4, {"pixel_values": pixels, "image_position_ids": places}
    frames = torch.tensor([pictures])
    inputs = {"pixel_values_videos": pixels, "video_position_ids": places, "num_frames_per_video": frames}
    return pictures * patches // 4, inputs


VIDEO = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 23)
"""Whether its forward takes videos: before, only `generate` handed on how many frames each has."""

TINY = (
    tiny.Tiny("gemma4_small", partial(build, **SMALL), media, video=VIDEO, types="mm_token_type_ids"),
    tiny.Tiny("gemma4_large", partial(build, **LARGE), media, video=VIDEO, types="mm_token_type_ids"),
)
