"""What a decoder adds to hidden states between its blocks, such as deepstack features, where columns are dropped.

The model would add rows for every column of the prompt to states that hold fewer. So they are taken out of the
decoder's arguments, and each block that is due gets those of the columns that it still sees.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .. import ops
from .run import ForwardPass


def take_over(forward: ForwardPass) -> None:
    """For this prefill."""
    assert forward.taps is not None
    forward.taps.before(forward.pipeline.anatomy.decoder, partial(_take_out, forward), first=True)


def _take_out(forward: ForwardPass, args: Any, kwargs: dict[str, Any]) -> Any:
    """Before the decoder: its arguments without the additions."""
    anatomy, taps = forward.pipeline.anatomy, forward.taps
    assert taps is not None
    left, added = anatomy.adapter.additions(dict(kwargs))
    for block, rows in added.items():
        taps.change(anatomy.blocks[block], partial(_plus, forward, block, rows))
    return args, left


def _plus(forward: ForwardPass, block: int, rows: Float[Tensor, "b s d"], hidden: Float[Tensor, "b k d"]) -> Tensor:
    """A block's output and the rows of the columns that it saw."""
    view, rows = forward.prompt.view_at(block), rows.to(hidden)
    return hidden + (rows if view is forward.prompt.full_view else ops.gather_columns(rows, view.to(rows.device).index))
