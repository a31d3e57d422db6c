"""The oracle's other half for decoders that keep states: the sequence without the dropped tokens, one prompt alone.

A masked column still decays the state of a linear block and stands in its convolution, so masking says nothing there.
Here its row is taken out of the unpruned model's own states on the way into a block, without the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..model.anatomy import Anatomy
from ..parts.adapter import Adapter
from ..state.view import View


@contextmanager
def shortened(
    model: Any, columns: int, kept: Mapping[int, Int[Tensor, "k"]], adapter: Adapter | None = None
) -> Iterator[None]:
    """From block L on, rows of `kept[L]` only go on: of the `columns` of one prompt, in a batch of its own."""
    every = torch.arange(columns)

    def left(block: int) -> Tensor:
        layers = [layer for layer in kept if layer <= block]
        return kept[max(layers)] if layers else every

    def enter(block: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mine, hidden = left(block), args[0]
        if len(mine) == columns:
            return None
        if hidden.shape[1] == 1:  # a decode step sees all that is there
            return args, {**kwargs, "attention_mask": None}

        def rows(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(rows, value))
            if not isinstance(value, Tensor):
                return value
            if value.ndim == 4 and value.shape[2:] == (columns, columns):
                return value[:, :, mine][..., mine]
            return value[:, mine] if value.ndim > 1 and value.shape[1] == columns else value

        if hidden.shape[1] != len(mine):
            before = left(block - 1)
            hidden = hidden[:, [before.tolist().index(column) for column in mine.tolist()]]
        return (hidden, *map(rows, args[1:])), {name: rows(value) for name, value in kwargs.items()}

    handles = [
        block.register_forward_pre_hook(partial(enter, number), with_kwargs=True)
        for number, block in enumerate(Anatomy.of(model, adapter).blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kept_columns(views: Mapping[int, View], row: int, pads: int) -> dict[int, Tensor]:
    """Of one prompt of a batch, left-padded by `pads` columns: by layer, which of its own columns are left."""
    return {max(layer, 0): view.index[row][view.valid[row]] - pads for layer, view in sorted(views.items())}
