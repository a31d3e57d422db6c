"""What ranks visual tokens: of a prompt in the decoder, or of pictures inside the vision tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..seen.pictures import Pictures, Ranking
from ..seen.prompt import Seen
from ..seen.vision import Block


class Scorer(ABC):
    """Ranks the visual tokens of one prompt. A frozen dataclass: its fields are its YAML keys.

    No batch axis, no padding, no hooks. Raise ValueError in `__post_init__` for values that make no sense.
    """

    equivariant: ClassVar[bool] = False
    """Whether tokens get the same scores in whatever order they are listed; `tokenprune.contract` then checks it."""

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        """Blocks of the vision tower whose states `score` asks `seen.vision` for; only these are recorded."""
        return ()

    @abstractmethod
    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        """One number per visual token; the `seen.keep` highest survive, ties go to the lower column."""


class VisionScorer(ABC):
    """Ranks the tokens of pictures inside the vision tower (`tower: vision`). A frozen dataclass, as a Scorer is.

    A class may be both: a Scorer for the decoder and a VisionScorer.
    """

    @property
    def proportional(self) -> bool:
        """Whether merged tokens weigh as much in attention as the tokens they stand for (ToMe, arXiv 2210.09461)."""
        return False

    @abstractmethod
    def rank(self, pictures: Pictures) -> Ranking:
        """One number per token of each picture, and where it would be merged into."""
