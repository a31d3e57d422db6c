"""What knows a family's vision tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..seen.vision import VisionBlock

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments of a module's forward, by position and by name."""


@dataclass(frozen=True, eq=False)
class BlockRun:
    """What was captured of one block: its call, its output and those of its projections. References, no copies."""

    call: Call
    output: Tensor
    projected: Mapping[str, Tensor]


class VisionAdapter(ABC):
    """Knows one family's vision tower: answers questions about modules and rows, decides nothing.

    A run of the tower gives rows; the projector turns them into the rows that become visual tokens. All rows of a run
    lie one after the other: of each picture its CLS row, if any, then its tokens, each of one row or several.
    """

    @abstractmethod
    def towers(self, base: nn.Module) -> list[nn.Module]:
        """The modules that pictures or videos go through."""

    @abstractmethod
    def projector(self, base: nn.Module) -> nn.Module:
        """The module whose output rows become visual tokens, possibly in another order; it runs once per tower run."""

    @abstractmethod
    def added(self, base: nn.Module) -> Float[Tensor, "m d"] | None:
        """Rows that the model puts between those of the projector, or None."""

    @abstractmethod
    def blocks(self, tower: nn.Module) -> list[nn.Module]:
        """Tower blocks, first to last."""

    @abstractmethod
    def features(self, config: Any, depth: int) -> int:
        """The number of the block whose output the projector gets."""

    @abstractmethod
    def projections(self, block: nn.Module) -> Mapping[str, nn.Module]:
        """The linear layers that `read` wants the outputs of, by names of its own."""

    @abstractmethod
    def read(self, tower: nn.Module, block: nn.Module, run: BlockRun) -> VisionBlock:
        """What a block computed, from what was captured of it."""

    @abstractmethod
    def sources(self, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        """The tower rows behind each of the projector's `m` output rows (of this shape), given how many there are."""

    @abstractmethod
    def places(self, tower: nn.Module, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        """Picture, row and column of each of the projector's output rows, counted in such rows; -1: no such place."""

    @abstractmethod
    def pictures(self, tower: nn.Module, call: Call, hidden: Tensor) -> tuple[tuple[int, ...], int]:
        """Tokens of each picture, tile or frame of a run whose rows enter the first block, and rows of each token."""

    @abstractmethod
    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        """A block's call with arguments for these rows (counted in the whole run, ascending) only."""

    def weigh(self, block: nn.Module, call: Call, sizes: Float[Tensor, "*r"]) -> Call:
        """A block's call whose attention counts each of the rows entering it `sizes` times.

        Raises UnsupportedModelError where that is not possible.
        """
        raise UnsupportedModelError(
            "attention of this vision tower takes no mask to be made proportional with: set proportional=false"
        )

    def refuse(self, config: Any) -> str | None:
        """Why passes inside this tower cannot work, or None."""
        return None
