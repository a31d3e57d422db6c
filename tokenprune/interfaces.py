"""The interfaces of tokenprune, and the types of mergers and calibrations. All else is built from these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .errors import UnsupportedModelError
from .tower import Block, Pictures, Ranking, TowerBlock
from .values import Seen, Shape

RotaryTables = tuple[Tensor, Tensor]
"""cos and sin, each `b s dh`."""

Box = tuple[float, float, float, float]
"""left, top, right, bottom; 0 to 1 is the whole picture."""


class Scorer(ABC):
    """Ranks the visual tokens of one prompt. A frozen dataclass: its fields are its YAML keys.

    No batch axis, no padding, no hooks. Raise ValueError in `__post_init__` for values that make no sense.
    """

    equivariant: ClassVar[bool] = False
    """Whether tokens get the same scores in whatever order they are listed; `tokenprune.contract` then checks it."""

    @property
    def tower(self) -> tuple[Block, ...]:
        """Blocks of the vision tower whose states `score` asks `seen.tower` for; only these are recorded."""
        return ()

    @abstractmethod
    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        """One number per visual token; the `seen.keep` highest survive, ties go to the lower column."""


class TowerScorer(ABC):
    """Ranks the tokens of pictures inside the vision tower (`tower: vision`). A frozen dataclass, as a Scorer is.

    A class may be both: a Scorer for the decoder and a TowerScorer.
    """

    @property
    def proportional(self) -> bool:
        """Whether merged tokens weigh as much in attention as the tokens they stand for (ToMe, arXiv 2210.09461)."""
        return False

    @abstractmethod
    def rank(self, pictures: Pictures) -> Ranking:
        """One number per token of each picture, and where it would be merged into."""


class Scheduler(ABC):
    """Says after how many blocks how many tokens stay. A frozen dataclass, and a pure function of the shape."""

    needs_ecl: ClassVar[bool] = False
    """Whether `plan` reads `shape.ecl`; it is then known before `plan` is called."""

    @abstractmethod
    def plan(self, shape: Shape) -> dict[int, int]:
        """`{layer: tokens kept}`, layers ascending, counts strictly decreasing and below `shape.visual`.

        Raises LayerError (whatever `shape.visual` is) and BudgetError.
        """


class Adapter(ABC):
    """Knows one model family: answers questions about modules and token ids, decides nothing."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `config.model_type` this adapter answers for."""

    @abstractmethod
    def base(self, model: nn.Module) -> nn.Module:
        """The module whose forward takes `input_ids` and picture features and calls the decoder."""

    @abstractmethod
    def decoder(self, base: nn.Module) -> nn.Module:
        """The text decoder; it has `.config`."""

    @abstractmethod
    def blocks(self, decoder: nn.Module) -> list[nn.Module]:
        """Decoder blocks, first to last."""

    @abstractmethod
    def projections(self, block: nn.Module) -> Mapping[str, nn.Module]:
        """`queries`, `keys`, `values` -> the linear layer whose output holds them, heads concatenated (tensor parallel:
        this rank's heads).
        """

    @abstractmethod
    def project(self, block: nn.Module, name: str, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r w"]:
        """What `projections(block)[name]` would give for these rows entering the block (its own norm included)."""

    @abstractmethod
    def head_size(self, block: nn.Module) -> int:
        """dh."""

    @abstractmethod
    def scaling(self, block: nn.Module) -> float:
        """Factor on the attention logits."""

    @abstractmethod
    def rotate(self, states: Float[Tensor, "h r dh"], cos: Tensor, sin: Tensor) -> Float[Tensor, "h r dh"]:
        """RoPE with the tables (`r dh`) of these rows."""

    @abstractmethod
    def norm(self, decoder: nn.Module, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        """The decoder's final norm."""

    @abstractmethod
    def rotary(self, decoder: nn.Module, hidden: Tensor, positions: Int[Tensor, "b s"]) -> RotaryTables | None:
        """Rotary tables for new positions, or None if the family's positions cannot be renumbered (M-RoPE)."""

    @abstractmethod
    def visual(self, config: Any, input_ids: Int[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
        """Which columns are placeholders of picture or video tokens."""

    @abstractmethod
    def refuse(self, config: Any) -> str | None:
        """Why this decoder cannot be pruned (a sliding window, say), or None."""

    @abstractmethod
    def boxes(self, config: Any, inputs: Mapping[str, Any]) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        """Where visual tokens lie: by placeholder id, one tensor per picture or video, in the order of the batch.

        Per token: panel (a video's frame, or one of several grids over the same picture), then its box in the `window`;
        NaN for a token without a place, such as a newline. Endless where all pictures are alike, empty where `inputs`,
        what the processor returned, do not tell. None: not known for this family.
        """

    @abstractmethod
    def window(self, processor: Any, width: int, height: int) -> Box:
        """What the model sees of a picture of this size, in the picture's coordinates; padding lies beyond 0 and 1.

        `processor` is the image or video processor; raises TokenpruneError where it is needed and None.
        """

    def tower(self) -> TowerAdapter | None:
        """Who knows this family's vision tower; None if its states cannot be read."""
        return None


class TowerAdapter(ABC):
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
    def read(self, tower: nn.Module, block: nn.Module, run: BlockRun) -> TowerBlock:
        """What a block computed, from what was seen of it."""

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


Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments of a module's forward, by position and by name."""


@dataclass(frozen=True, eq=False)
class BlockRun:
    """What was seen of one tower block: its call, its output and those of its projections. References, no copies."""

    call: Call
    output: Tensor
    projected: Mapping[str, Tensor]


Merger = Callable[[Float[Tensor, "n d"], Int[Tensor, "k"], Seen], Float[Tensor, "n d"]]
"""`merge(hidden, kept, seen)`: the same n rows with the dropped tokens folded into the kept ones. `seen.scores`
is what the scorer gave. A function that reads tower states names their blocks in an attribute `tower`, as scorers do;
one that changes rows although nothing is dropped says so in an attribute `mixes = True`.
"""

Calibration = Callable[..., dict[str, Any]]
"""`fit(model, prompts, **settings)`: a recipe as in YAML, measured on `prompts`, an iterable of model inputs."""


def reads(merger: Merger | None) -> tuple[Block, ...]:
    """The tower blocks that a merger reads."""
    return tuple(getattr(merger, "tower", ()))
