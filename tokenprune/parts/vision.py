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


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Where the tokens of a tower's run lie among its rows.

    Rows of pictures follow each other, and a picture's CLS row, if it has one, is its first.

    Attributes:
        tokens: of each picture, tile or frame.
        unit: rows that become one token.
        rows: of each token, counted in the run; None where they lie one after the other, token after token.
    """

    tokens: tuple[int, ...]
    unit: int = 1
    rows: Int[Tensor, "t m"] | None = None


class VisionAdapter(ABC):
    """Knows one family's vision tower: answers questions about modules and rows, decides nothing.

    A run of the tower gives rows; the projector turns them into the rows that become visual tokens.

    Attributes:
        whole: what comes after the blocks, up to the projector, wants every row of a grid (it pools or shuffles them).
            Then zeros stand for dropped rows from the last block on, and what the projector makes of them is not read.
        caveat: what of this family's visual tokens are no rows of the projector, as errors should say it; or nothing.
    """

    whole: bool = False
    caveat: str = ""

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
    def sources(self, tower: nn.Module, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        """The tower rows behind each of the projector's `m` output rows (of this shape), given how many there are."""

    @abstractmethod
    def places(self, tower: nn.Module, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        """Picture, row and column of each of the projector's output rows, counted in such rows; -1: no such place."""

    def token_rows(self, config: Any, tower: nn.Module, call: Call, hidden: Tensor) -> TokenRows:
        """Of a run whose rows enter the first block, in a model of this config. Towers that refuse passes need none."""
        raise NotImplementedError

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        """A block's call with arguments for these rows only, counted in the whole run, in the order they come in.

        Towers that refuse passes need none.
        """
        raise NotImplementedError

    def sides(self, base: nn.Module) -> list[nn.Module]:
        """Modules besides the projector that make a row of each token, of what left an earlier block."""
        return []

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
