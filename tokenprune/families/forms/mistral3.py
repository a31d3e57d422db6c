"""Mistral Small 3 and Ministral 3 as models: one vision model, two decoders."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor

SIZES = ((32, 32), (32, 24), (16, 32))
"""Height and width of the tiny model's pictures."""

MINISTRAL = {
    "model_type": "ministral3",
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 16,  # queries behind these positions are scaled
        "max_position_embeddings": 512,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.5,
    },
}


def build(**text: Any) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
    }
    config = Mistral3Config(
        text_config={**tiny.text_config(head_dim=16, sliding_window=None), **text},
        vision_config=vision,
        image_token_index=tiny.IMAGE,
        spatial_merge_size=2,
    )
    return Mistral3ForConditionalGeneration(config)


def media(kind: str, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    import torch

    height, width = SIZES[seed % len(SIZES)]
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., :height, :width] = tiny.normal(seed, 1, 3, height, width)
    line, end = 7, 8
    ids = [*[tiny.IMAGE] * (width // 8), line] * (height // 8)
    return [*ids[:-1], end], {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


TINY = (
    tiny.Tiny("mistral3", partial(build, model_type="mistral"), media),
    tiny.Tiny("ministral3", partial(build, **MINISTRAL), media),
)
