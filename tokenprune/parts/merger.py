"""What folds dropped tokens into kept ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from ..seen.prompt import Seen
from ..seen.vision import Block


class Merger(ABC):
    """Folds what is dropped of one prompt into what stays. A frozen dataclass: its fields are its YAML keys."""

    mixes: ClassVar[bool] = False
    """Whether it changes rows although nothing is dropped; `tokenprune.contract` checks that it does not otherwise."""

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        """Blocks of the vision tower whose states `merge` asks `seen.vision` for, as of scorers."""
        return ()

    @abstractmethod
    def merge(self, hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
        """The same n rows with the dropped tokens folded into the kept ones.

        Args:
            hidden: states of the visual tokens.
            kept: which of them stay, in order.
            seen: as the scorer saw it, with `scores`, what it gave.
        """
