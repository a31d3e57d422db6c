"""Arguments that towers and their blocks are called with."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..parts.vision import Call, VisionAdapter
from .groups import Survivors


def without_pixels(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A tower's call, of which only sizes and grids are asked later: the pixels are not to be held for that."""
    return (None, *args[1:]), {k: v for k, v in kwargs.items() if k not in ("pixel_values", "hidden_states")}


def without_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A block's call, of which everything but the rows that enter it may be asked later."""
    return (None, *args[1:]), {k: v for k, v in kwargs.items() if k not in ("hidden_states", "hidden_state")}


def narrow(adapter: VisionAdapter, call: Call, survivors: Survivors) -> Call:
    """A block's call with arguments for the rows that are left.

    A tower makes rotary tables and window lengths once and passes the same objects to many blocks, so they are narrowed
    once for all of them. What was narrowed is remembered with all it was made of: the identity of an object that is
    gone may be another's.
    """
    if not survivors.pruned:
        return call
    args, kwargs = call
    shared = (*map(id, args[1:]), *map(id, kwargs.values()))
    if shared not in survivors.narrowed:
        survivors.narrowed[shared] = call, adapter.narrow(call, survivors.kept_rows)
    return survivors.narrowed[shared][1]


def weigh(
    adapter: VisionAdapter, block: nn.Module, call: Call, survivors: Survivors, hidden: Float[Tensor, "*r d"]
) -> Call:
    """A block's call whose attention counts every row as often as the tokens it stands for, if the scorer wants that.

    Raises:
        UnsupportedModelError: this tower's attention cannot do so.
    """
    if not survivors.proportional:
        return call
    return adapter.weigh(block, call, survivors.sizes_of_rows.to(hidden.dtype).view(hidden.shape[:-1]))
