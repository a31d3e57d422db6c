"""What feed-forwards cost, dense ones and experts, read from a config by the names of its fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_topk")
SHARED = ("n_shared_experts", "moe_num_shared_experts")


def feed_forward(text: Any, block: int, shares: bool = False) -> int:
    """Multiply-adds of a token: three matrices; of experts those that it is sent to, those of all, and the router.

    Args:
        text: the config as this block has it.
        block: its number.
        shares: it uses keys and values of an earlier block, and may be wider for that.
    """
    width: int = text.hidden_size
    if not _is_sparse(text, block):
        doubled = shares and getattr(text, "use_double_wide_mlp", False)
        return 3 * width * dense(text, block) * (2 if doubled else 1)
    expert = _number(text, block, "moe_intermediate_size", "intermediate_size")
    gated = common = _number(text, block, "shared_expert_intermediate_size")
    if not common and hasattr(text, "intermediate_size_mlp"):
        common = expert  # where this field is the dense width, the other one is that of experts, one of them for all
    common += expert * _number(text, block, *SHARED)
    if getattr(text, "enable_moe_block", False):  # experts beside the feed-forward that every block has
        common += dense(text, block)
    active = _number(text, block, *CHOSEN) * expert
    return width * (3 * (active + common) + _number(text, block, *EXPERTS) + bool(gated))


def dense(text: Any, block: int = 0) -> int:
    """The width of a feed-forward without experts; of one expert where no block is without."""
    size = _number(text, block, "intermediate_size_mlp", "intermediate_size", "moe_intermediate_size")
    if getattr(text, "block_auto_adjust_ff_dim", False):  # two thirds of it, in whole multiples
        multiple, share = text.block_multiple_of, getattr(text, "block_ffn_dim_multiplier", None)
        size = int(2 * size / 3)
        size = size if share is None else -(-int(share * size) // multiple) * multiple
    return size


def _is_sparse(text: Any, block: int) -> bool:
    """Whether a block has experts: each of these fields may say that it has none."""
    if not _number(text, block, *EXPERTS) or not getattr(text, "enable_moe_block", True):
        return False
    kinds, chosen = getattr(text, "mlp_layer_types", None), getattr(text, "moe_layers", None)
    return (
        (not kinds or kinds[block % len(kinds)] != "dense")
        and (chosen is None or block in chosen)
        and block >= _number(text, block, "first_k_dense_replace")
        and block not in (getattr(text, "mlp_only_layers", None) or ())
        and (block + 1) % (_number(text, block, "decoder_sparse_step", "interleave_moe_layer_step") or 1) == 0
    )


def _number(text: Any, block: int, *names: str) -> int:
    """The first of these fields that the config has, of this block if it says it of each; 0 without any."""
    found: Any = next((value for name in names if (value := getattr(text, name, None)) is not None), 0)
    return int(found[min(block, len(found) - 1)] if isinstance(found, Sequence) else found)
