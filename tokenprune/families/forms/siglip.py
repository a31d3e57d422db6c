"""What the tiny families with a SigLIP tower share."""

from __future__ import annotations

from typing import Any


def siglip(image: int = 32, patch: int = 8) -> dict[str, Any]:
    """The config of a SigLIP of three blocks for square pictures, 16 patches of them; no CLS row, no head."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        "vision_use_head": False,
    }
