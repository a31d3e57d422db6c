"""Llama 4 as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor


def build() -> Any:
    """Chunks of 16 columns and RoPE in all blocks but every third; experts in every other block."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = tiny.text_config(
        intermediate_size_mlp=96,
        head_dim=16,
        attention_chunk_size=16,
        no_rope_layer_interval=3,
        interleave_moe_layer_step=2,
        num_local_experts=4,
        num_experts_per_tok=1,
        floor_scale=128,
        attn_scale=0.5,
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    }
    config = Llama4Config(
        text_config=text, vision_config=vision, image_token_index=tiny.IMAGE, boi_token_index=3, eoi_token_index=4
    )
    return Llama4ForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    rows, columns = ((0, 0), (1, 2), (2, 2))[seed % 3]
    tile, begin, end, beside, below, whole = [tiny.IMAGE] * 4, 3, 4, 7, 8, 9
    row = [*[*tile, beside] * columns, below]
    if columns:
        del row[-2]  # nothing is beside the last one
    ids = [begin, *row * rows, whole, *tile, end]  # the whole picture comes last
    return ids, {"pixel_values": tiny.normal(seed, rows * columns + 1, 3, 32, 32)}


TINY = tiny.Tiny("llama4", build, media)
