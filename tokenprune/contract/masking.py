"""The oracle's other half: the same tokens hidden by a mask, on the unpruned model, written without the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model.anatomy import Anatomy
from ..state.view import View


@contextmanager
def hidden_by_mask(
    model: Any,
    attention_mask: Tensor,
    views: Mapping[int, View],
    compact: bool | Mapping[int, View] = False,
    folded: Mapping[int, Tensor] | None = None,
) -> Iterator[None]:
    """From block L on, hide every prompt column that is not in `views[L]`; sequence lengths stay as they are.

    With `compact`, kept columns are also renumbered without gaps from block L on (1-D positions); views of its own say
    after which of the steps that happens, and what is left then. `folded[L]` are rows (in the order of the view) that
    take the place of the kept columns on their way into block L of the prefill.
    """
    anatomy = Anatomy.of(model)
    valid = attention_mask.bool()
    b, s = valid.shape
    renumbered = (views if compact else {}) if isinstance(compact, bool) else compact

    def seen(block: int, views: Mapping[int, View]) -> Tensor | None:
        layers = [layer for layer in views if layer <= block]
        if not layers:
            return None
        view, columns = views[max(layers)], torch.zeros_like(valid)
        for row in range(b):
            columns[row, view.index[row][view.valid[row]]] = True
        return columns & valid

    def enter(block: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        columns = seen(block, views)
        if columns is None:
            return None
        hidden = args[0]
        if folded and block in folded and hidden.shape[1] == s:
            hidden = hidden.clone()
            for row in range(b):
                view = views[block]
                hidden[row, view.index[row][view.valid[row]]] = folded[block][row][view.valid[row]]
            args = (hidden, *args[1:])
        cache = kwargs["past_key_values"]
        past = cache.get_seq_length(block) if cache is not None else 0
        q = hidden.shape[1]
        later = torch.ones(b, past + q - s, dtype=torch.bool)
        every = torch.cat([columns, later], dim=1)
        rows = torch.arange(past, past + q)[:, None]
        each = torch.arange(past + q)[None]
        allowed = ((each <= rows)[None] & every[:, None]) | (each == rows)[None]  # the last row answers, hidden or not
        mask = torch.zeros(b, 1, q, past + q, dtype=hidden.dtype)
        mask.masked_fill_(~allowed[:, None], torch.finfo(hidden.dtype).min)
        kwargs = {**kwargs, "attention_mask": mask}
        if (numbered := seen(block, renumbered)) is not None:
            positions = (torch.cat([numbered, later], dim=1).cumsum(1) - 1).clamp_min(0)[:, past:]
            kwargs["position_embeddings"] = anatomy.rotary(hidden, positions)
        return args, kwargs

    handles = [
        block.register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i, block in enumerate(anatomy.blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
