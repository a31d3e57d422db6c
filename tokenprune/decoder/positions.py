"""Rotary tables, and whatever else has a row for each column of the prompt, of the columns that are left.

Columns keep the positions that they had, so a table row goes with its column; only where a stage says `positions:
compact` does the decoder make tables anew, for positions that lag behind by how many were freed before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from .. import ops
from ..parts.attention import RotaryTables, of_tables
from ..state.view import View
from . import masks
from .run import ForwardPass


def rotary(
    forward: ForwardPass, block: int, kind: str, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> tuple[Int[Tensor, "b k"] | None, RotaryTables]:
    """Rotary tables of the columns a block sees: those of their old positions, or of new ones, which are given too.

    In the pass that prunes, positions are those of the whole prompt. A kept column then lags behind by what was freed
    up to it in this prompt, and by all of what earlier turns freed; `freed_in_all` counts this prompt as a whole, as
    later passes want it, so what was freed behind the column is added again.

    Args:
        kind: the layer type of the block that the tables are for.
        kwargs: what the model gave that block.
    """
    prompt, tables = forward.prompt, kwargs.get("position_embeddings")
    key = prompt.view_layers(block), kind
    if key in forward.rotary or not any(layer is not None for layer in key[0]):
        return forward.rotary.get(key, (None, tables))
    lag = masks.held(forward, block, hidden.device).freed
    pruned = forward.prefill and prompt.view_layer(block) is not None
    view = prompt.view_at(block).to(hidden.device) if pruned else None
    positions, anew = None, None
    if lag is not None and kwargs.get("position_ids") is not None:
        positions = kwargs["position_ids"].to(hidden.device) - lag.to(hidden.device)
        if view is not None:
            freed = prompt.freed(block, hidden.device, forward.answering)
            positions = (positions + freed[:, -1:] - freed).gather(1, view.index)
        anew = forward.pipeline.anatomy.rotary(hidden, positions.clamp_min(0), kind)
    if anew is None:
        positions, anew = None, of_tables(lambda table: table.to(hidden.device), tables)  # blocks may lie apart
        if view is not None:
            anew = of_tables(lambda table: ops.gather_columns(table, view.index), anew)
    forward.rotary[key] = positions, anew
    return positions, anew


def narrowed(value: Any, view: View) -> Any:
    """An argument with the view's columns, if it has one row for each column of the prompt."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != view.span:
        return value
    if len(value) not in (1, len(view.index)):
        return value
    index = view.index.to(value.device).view(*view.index.shape, *[1] * (value.ndim - 2))
    index = index.expand(-1, -1, *value.shape[2:])
    return value.expand(len(index), *value.shape[1:]).gather(1, index)
