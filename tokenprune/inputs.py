"""What a forward pass was given, as the engine reads it: the mask over its columns, or why it cannot be followed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cache as caches

PACKED = "several prompts share one row (continuous batching, padding-free training); give each prompt a row of its own"


def refusal(mask: Any, cache: Any, *, packed: bool, flash: bool, starts: bool, compiled: bool) -> str | None:
    """What keeps pruning from following this pass, and what to do instead; None if it can."""
    if packed:
        return PACKED
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        got = f"{mask.ndim}-D mask that is not causal" if isinstance(mask, Tensor) else type(mask).__name__
        return f"it needs a 2-D attention mask (prompts x columns) or none, got a {got}; pass the tokenizer's mask"
    if flash and caches.room(cache):
        return (
            "flash attention reads the empty columns of a static cache too, with or without pruning; use sdpa, or "
            "leave cache_implementation at its default"
        )
    if starts and compiled:
        return (
            "a prefill inside torch.compile would be compiled for every prompt; take torch.compile off the model and "
            "pass cache_implementation='static' to generate, which compiles the decode steps only"
        )
    return None


def columns(mask: Any, past: int, new: int) -> Any:
    """The 2-D mask that a 4-D causal one was made of; anything else as it is.

    Static caches come with a ready-made mask, some by attention type. Its last row sees all columns but padding.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", mask)
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1:
        return mask
    allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
    visible = allowed[:, -1]
    if new > 1:  # one row cannot be anything else than causal
        every = torch.arange(visible.shape[1], device=visible.device)
        causal = every <= every[past : past + new, None]
        real = visible[:, past : past + new, None]  # what padded rows see does not matter
        if not torch.equal(allowed & real, visible[:, None] & causal & real):
            return mask
    return visible
