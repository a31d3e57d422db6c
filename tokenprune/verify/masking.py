"""The oracle's other half: the same tokens hidden by a mask, on the unpruned model, written without the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..model.anatomy import Anatomy
from ..parts.adapter import Adapter
from ..state.view import View


@contextmanager
def hidden_by_mask(
    model: Any,
    attention_mask: Tensor,
    views: Mapping[int, View],
    compact: bool | Mapping[int, View] = False,
    folded: Mapping[int, Tensor] | None = None,
    adapter: Adapter | None = None,
) -> Iterator[None]:
    """From block L on, hide every prompt column that is not in `views[L]`; sequence lengths stay as they are.

    With `compact`, kept columns are also renumbered without gaps from block L on (1-D positions); views of its own say
    after which of the steps that happens, and what is left then. `folded[L]` are rows (in the order of the view) that
    take the place of the kept columns on their way into block L of the prefill.
    """
    anatomy = Anatomy.of(model, adapter)
    valid = attention_mask.bool()
    b, s = valid.shape
    totals = [s]  # columns of the conversation with those of the pass
    renumbered = (views if compact else {}) if isinstance(compact, bool) else compact

    def enter(block: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden, q = args[0], args[0].shape[1]
        if block == 0:  # no layer of the cache has grown yet
            past = kwargs.get("past_key_values")
            totals[:] = [q + (int(past.get_seq_length()) if past is not None else 0)]
        columns, total = _seen(block, views, valid), totals[0]
        if columns is None:
            return None
        if folded and block in folded and hidden.shape[1] == s:
            args = (_replaced(hidden, views[block], folded[block]), *args[1:])
        own = own_mask(anatomy, block, hidden, kwargs, total)
        every = torch.cat([columns, torch.ones(b, total - s, dtype=torch.bool)], dim=1)[:, total - own.shape[-1] :]
        last = torch.arange(own.shape[-1])[None] == torch.arange(q)[:, None] + own.shape[-1] - q
        allowed = (own & every[:, None, None]) | last  # the last row answers, hidden or not
        mask = torch.zeros(allowed.shape, dtype=hidden.dtype)
        kwargs = {**kwargs, "attention_mask": mask.masked_fill_(~allowed, torch.finfo(hidden.dtype).min)}
        if (numbered := _seen(block, renumbered, valid)) is not None:
            later = torch.ones(b, total - s, dtype=torch.bool)
            positions = (torch.cat([numbered, later], dim=1).cumsum(1) - 1).clamp_min(0)[:, total - q :]
            kwargs["position_embeddings"] = anatomy.rotary(hidden, positions, anatomy.kinds[block])
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = positions
        return args, kwargs

    handles = [
        block.register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i, block in enumerate(anatomy.blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _seen(block: int, views: Mapping[int, View], valid: Bool[Tensor, "b s"]) -> Bool[Tensor, "b s"] | None:
    """The prompt columns that a block sees; None for all."""
    layers = [layer for layer in views if layer <= block]
    if not layers:
        return None
    view, columns = views[max(layers)], torch.zeros_like(valid)
    for row in range(len(valid)):
        columns[row, view.index[row][view.valid[row]]] = True
    return columns & valid


def _replaced(hidden: Float[Tensor, "b s d"], view: View, folded: Float[Tensor, "b k d"]) -> Float[Tensor, "b s d"]:
    hidden = hidden.clone()
    for row in range(len(hidden)):
        hidden[row, view.index[row][view.valid[row]]] = folded[row][view.valid[row]]
    return hidden


def own_mask(anatomy: Anatomy, block: int, hidden: Tensor, kwargs: Mapping[str, Any], total: int) -> Tensor:
    """The mask that the unpruned model gives a block, `b h q c`: what stands for none there is written out."""
    own, (b, q) = kwargs.get("attention_mask"), hidden.shape[:2]
    if isinstance(own, Tensor) and own.ndim == 4:
        return own if own.dtype == torch.bool else own >= 0
    assert own is None, "the reference is for sdpa and eager attention"
    if anatomy.sees_both_ways(block):
        return torch.ones(b, 1, q, total, dtype=torch.bool)
    return (torch.arange(total)[None] <= torch.arange(total - q, total)[:, None]).expand(b, 1, q, total)
