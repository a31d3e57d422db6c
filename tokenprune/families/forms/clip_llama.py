"""What the families of CLIP and Llama share."""

from __future__ import annotations

from typing import Any

LLAMA_7B: dict[str, Any] = {"depth": 32, "width": 4096, "ffn": 11008, "heads": 32, "kv_heads": 32, "head_size": 128}
LLAMA = {"model_type": "llama", "vocab_size": 32064}


def clip_large(size: int) -> dict[str, Any]:
    """The config of CLIP ViT-L/14 for pictures of this size."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": size,
        "patch_size": 14,
    }
