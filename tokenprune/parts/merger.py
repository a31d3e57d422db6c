"""What folds dropped tokens into kept ones."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from ..seen.prompt import Seen
from ..seen.vision import Block

Merger = Callable[[Float[Tensor, "n d"], Int[Tensor, "k"], Seen], Float[Tensor, "n d"]]
"""`merge(hidden, kept, seen)`: the same n rows with the dropped tokens folded into the kept ones. `seen.scores`
is what the scorer gave. A function that reads tower states names their blocks in an attribute `reads_blocks`, as
scorers do; one that changes rows although nothing is dropped says so in an attribute `mixes = True`.
"""


def reads(merger: Merger | None) -> tuple[Block, ...]:
    """The tower blocks that a merger reads."""
    return tuple(getattr(merger, "reads_blocks", ()))
