"""The default config of a model type, and values for what default configs leave open and published ones do not."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedModelError
from .prompt import STARTS, configs, first
from .shrink import said

_IMAGE, _START = 1_000_001, 1_000_002  # no other special token is
_SOUNDS = ("audio_token_id", "audio_token_index")
_OPEN: dict[str, Any] = {
    "deepstack_layer_map": [[-1, 1], [-2, 2]],
    "downsample_rate": "1/2",
    "head_dim": 128,
    "image_token_id": _IMAGE,
    "image_token_index": _IMAGE,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "indexer_head_dim": 128,
    "indexer_kv_heads": 1,
    "indexer_n_heads": 4,
    "moe_intermediate_size": 1024,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 512,
    "top_k_experts": 2,
    "vocabulary_map": {"<image>": _IMAGE},
}
"""By the name of a field that is there and None."""


def typical(model_type: str) -> Any:
    """What a published config of this type may look like.

    Raises:
        UnsupportedModelError: transformers does not have the type, or no default config of it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(model_type)
    except Exception as error:
        raise UnsupportedModelError(
            f"transformers has no default config of model type {model_type!r}: {said(error)}"
        ) from error
    for one in configs(config):
        fields = vars(one)
        for name, value in _OPEN.items():
            if name in fields and fields[name] is None:
                setattr(one, name, value)
        if "mlp_layer_types" in fields and one.mlp_layer_types is None:
            one.mlp_layer_types = ["dense"] + ["sparse"] * (one.num_hidden_layers - 1)
        if fields.get("full_attn_idxs") == list(range(fields.get("num_hidden_layers", 0))):  # for want of numbers
            one.full_attn_idxs = one.full_attn_idxs[2::3]
            one.layer_types = ["conv", "conv", "full_attention"] * len(one.full_attn_idxs)
            one.num_hidden_layers = len(one.layer_types)
        if fields.get("rope_parameters") == {} and fields.get("layer_types"):
            rotation = {"rope_type": "default", "rope_theta": 10000.0}
            one.rope_parameters = {kind: dict(rotation) for kind in one.layer_types}
    if first(config, _SOUNDS) is not None and first(config, STARTS) is None:
        config.vision_start_token_id = (
            _START  # code that gives positions to sounds asks for it without it being a field
        )
    return config
