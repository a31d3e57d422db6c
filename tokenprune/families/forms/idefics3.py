"""Idefics3 and SmolVLM as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor


def settings() -> dict[str, Any]:
    """The config of both: 16 patches of a tile, of which four share a token."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"model_type": "llama", **tiny.text_config()}
    return {"text_config": text, "vision_config": vision, "image_token_id": tiny.IMAGE, "scale_factor": 2}


def build_idefics3() -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    return Idefics3ForConditionalGeneration(Idefics3Config(**settings()))


def build_smolvlm() -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(SmolVLMConfig(**settings()))


def media(kind: str, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    import torch

    rows, columns = ((0, 0), (1, 2), (2, 2))[seed % 3]
    tiles = rows * columns + 1  # the whole picture comes last; black ones do not count
    pixels = torch.zeros(1, 5, 3, 32, 32)
    pixels[0, :tiles] = tiny.normal(seed, tiles, 3, 32, 32)
    tile, around, whole, which, line = [tiny.IMAGE] * 4, 3, 4, 7, 8
    row = [*[around, which, *tile] * columns, line]
    return [*row * rows, *[line] * (rows > 0), around, whole, *tile, around], {"pixel_values": pixels}


TINY = (tiny.Tiny("idefics3", build_idefics3, media), tiny.Tiny("smolvlm", build_smolvlm, media))
