"""What each block of a decoder costs, read from its config by the names of fields that transformers' models share.

Norms, rotations, softmax and biases are left out, as in arXiv 2602.17196, Eq. 15.
"""

from __future__ import annotations

from typing import Any

from ..parts.published import BlockSize
from .feed_forward import feed_forward

WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
"""The field that says how far blocks of a layer type see."""

ALONE = ("moe", "mlp")
"""Layer types of blocks that are a feed-forward and nothing else."""


def blocks(text: Any) -> tuple[BlockSize, ...]:
    """Every block of a text config."""
    types, shared = layer_types(text), getattr(text, "num_kv_shared_layers", None) or 0
    return tuple(_block(of_block(text, i), i, kind, i >= len(types) - shared) for i, kind in enumerate(types))


def layer_types(text: Any) -> list[str]:
    """Of every block; a shorter list repeats. Without one, a window that is named is that of all, as caches have it."""
    depth: int = text.num_hidden_layers
    if types := getattr(text, "layer_types", None):
        return [types[i % len(types)] for i in range(depth)]
    named = (kind for kind, field in WINDOWS.items() if getattr(text, field, None) is not None)
    return [next(named, "full_attention")] * depth


def of_block(text: Any, block: int) -> Any:
    """The config as one block has it. Where blocks differ, transformers refuses to say of all what is true of some."""
    return text.per_layer_config[block] if getattr(text, "is_heterogeneous", False) else text


def heads(text: Any, kind: str = "") -> tuple[int, int, int]:
    """Query heads, key/value heads and their size, in blocks of a layer type."""
    queries: int = text.num_attention_heads
    kv, size = getattr(text, "num_key_value_heads", None) or queries, getattr(text, "head_dim", None)
    if kind == "full_attention":  # sizes of their own, where a config says them of a type and not of single blocks
        size = getattr(text, "global_head_dim", None) or size
        if not _has_values(text, kind):
            kv = getattr(text, "num_global_key_value_heads", None) or kv
    return queries, kv, size or text.hidden_size // queries


def _block(text: Any, block: int, kind: str, shares: bool) -> BlockSize:
    rest = feed_forward(text, block, shares) + _per_layer_inputs(text)
    if kind in ALONE:
        return BlockSize(rest, attention=0, kv=0)
    if kind == "conv":
        return BlockSize(rest + _short_convolution(text), attention=0, kv=0)
    if kind == "linear_attention" and hasattr(text, "linear_num_value_heads"):
        return BlockSize(rest + _gated_delta_net(text), attention=0, kv=0)
    if getattr(text, "kv_lora_rank", None) and kind != "linear_attention":
        return _latent_attention(text, rest)
    queries, kv, size = heads(text, kind)
    inner, own = queries * size, 0 if shares else kv * size
    projected = (3 if _is_gated(text) else 2) * inner + (2 if _has_values(text, kind) else 1) * own
    weights = rest + text.hidden_size * projected
    if kind == "linear_attention":  # one whose fields are unknown here: projections as of full attention
        return BlockSize(weights, attention=0, kv=0)
    return BlockSize(weights, inner, 2 * own, getattr(text, WINDOWS[kind], None) if kind in WINDOWS else None)


def _has_values(text: Any, kind: str) -> bool:
    """Whether values have a projection of their own, or are the keys before rotation."""
    return kind in WINDOWS or not getattr(text, "attention_k_eq_v", False)


def _is_gated(text: Any) -> bool:
    """Whether attention has an output gate as wide as its queries; beside gated delta nets it has, unless told."""
    return bool(getattr(text, "attn_output_gate", hasattr(text, "linear_num_value_heads")))


def _gated_delta_net(text: Any) -> int:
    """Of arXiv 2412.06464, as transformers builds its modules from the fields `linear_*`.

    `in_proj_qkv` gives queries and keys of the key heads and values of the value heads, `in_proj_z` a gate as wide as
    the values, `in_proj_a` and `in_proj_b` a number for each value head, and `out_proj` takes the values back. A
    convolution goes over queries, keys and values. The state of a value head is a matrix, key size x value size; the
    rule reads it with the key, adds to it, and reads it with the query (Eq. 10). Kernels that take tokens in chunks
    do more, so as to take fewer steps: that is left out.
    """
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    projected = 2 * keys + 3 * values + 2 * text.linear_num_value_heads
    convolved = (2 * keys + values) * text.linear_conv_kernel_dim
    return int(text.hidden_size * projected + convolved + 3 * values * text.linear_key_head_dim)


def _short_convolution(text: Any) -> int:
    """One projection gives two gates and what they act on; each channel is convolved; one projection goes back."""
    width: int = text.hidden_size
    return 4 * width * width + width * int(text.conv_L_cache)


def _latent_attention(text: Any, rest: int) -> BlockSize:
    """Multi-head latent attention (arXiv 2405.04434, Eq. 9 to 13); its cache keeps the latent and the rotated keys."""
    queries: int = text.num_attention_heads
    keys, values = text.qk_nope_head_dim + text.qk_rope_head_dim, text.v_head_dim
    rank, squeezed = text.kv_lora_rank, getattr(text, "q_lora_rank", None)
    query = squeezed * (text.hidden_size + queries * keys) if squeezed else text.hidden_size * queries * keys
    latent = text.hidden_size * (rank + text.qk_rope_head_dim) + rank * queries * (text.qk_nope_head_dim + values)
    weights = query + latent + queries * values * text.hidden_size
    return BlockSize(rest + weights, queries * (keys + values) // 2, rank + text.qk_rope_head_dim)


def _per_layer_inputs(text: Any) -> int:
    """An embedding that each block gets besides: what it gates is projected to its width, and back."""
    return 2 * int(text.hidden_size) * (getattr(text, "hidden_size_per_layer_input", None) or 0)
