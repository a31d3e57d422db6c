"""What a forward pass was given, as the engine reads it: the mask over its columns, or why it cannot be followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..state import cache as caches

PACKED = "several prompts share one row (continuous batching, padding-free training); give each prompt a row of its own"
BOTH_WAYS = (
    "its decoder attends in both directions (is_causal is False), and pruning hides dropped tokens with causal masks; "
    "take is_causal back"
)


def pictures(given: Any) -> bool:
    """Whether an argument brings pictures: pixels or features, on their own or inside of something.

    Those have two dimensions at least and are real numbers or bytes. Whole numbers are facts about columns or pictures
    (token types, grids, sizes), which some models get in every pass.
    """
    if isinstance(given, Tensor):
        return given.ndim > 1 and given.numel() > 0 and (given.is_floating_point() or given.dtype == torch.uint8)
    if isinstance(given, Mapping):
        return any(map(pictures, given.values()))
    if isinstance(given, list | tuple):
        return any(map(pictures, given))
    return given is not None and not isinstance(given, str | bool | int | float)


def refusal(
    mask: Any, cache: Any, *, packed: bool, causal: bool, flash: bool, starts: bool, compiled: bool
) -> str | None:
    """What keeps pruning from following this pass, and what to do instead; None if it can."""
    if packed:
        return PACKED
    if not causal:
        return BOTH_WAYS
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
    if new > 1 and not causal(mask, past, new):  # one row cannot be anything else than causal
        return mask
    return _allowed(mask)[:, 0, -1]


def causal(mask: Tensor, past: int, new: int) -> Bool[Tensor, ""]:
    """Whether a 4-D mask hides padding and what comes later from each of `new` columns, and nothing else."""
    allowed = _allowed(mask)
    visible = allowed[:, 0, -1]
    every = torch.arange(visible.shape[1], device=visible.device)
    follows = every <= every[past : past + new, None]
    real = visible[:, past : past + new, None]  # what padded rows see does not matter
    fine = ((allowed & real[:, None]) == (visible[:, None] & follows & real)[:, None]).all()
    if mask.dtype != torch.bool:
        fine &= ((mask == 0) | (mask < -1000)).all()  # what is added to the logits only hides
    return fine


def _allowed(mask: Tensor) -> Bool[Tensor, "b h q c"]:
    return mask if mask.dtype == torch.bool else mask >= 0
