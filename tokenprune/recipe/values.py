"""What a recipe is: a name and passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from ..errors import RecipeError
from ..parts.merger import Merger
from ..parts.scheduler import Scheduler
from ..parts.scorer import Scorer, VisionScorer
from ..registry import registry
from ..seen.vision import Block

SCORERS = (Scorer, VisionScorer)

RecipeLike = Union["Recipe", Mapping[str, Any], str, Path]
"""A name (`entropyprune`, `entropyprune@128`), a path, a mapping as in YAML, or a Recipe."""


@dataclass(frozen=True)
class Pass:
    """One scorer and one schedule, in the decoder.

    Args:
        scorer: ranks the tokens.
        schedule: says where, and how many stay.
        merge: folds the dropped tokens into the kept ones first; None just drops.
        positions: `original` leaves the decoder's positions as they were; `compact` numbers what is left anew.
    """

    scorer: Scorer
    schedule: Scheduler
    merge: Merger | None = None
    positions: Literal["original", "compact"] = "original"

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, Scorer):
            name = type(self.scorer).__name__
            raise ValueError(f"{name} ranks pictures inside the vision tower: give its pass tower: vision")

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        """Blocks of the vision tower that its parts read."""
        return (*self.scorer.reads_blocks, *(() if self.merge is None else self.merge.reads_blocks))


@dataclass(frozen=True)
class VisionPass:
    """One scorer and one schedule inside the vision tower (`tower: vision`).

    Args:
        scorer: ranks the tokens of each picture, tile or frame.
        schedule: says where, and how many stay of each: its layers are blocks of the tower, the projector is the last.
        merge: `nearest` folds the dropped tokens into the kept ones first: means weighted by how many tokens each
            stands for, into the token that the scorer names, or the kept one with the most similar rows.
        positions: in the decoder; `compact` numbers what enters it anew. Rotary positions in the tower never change.
    """

    scorer: VisionScorer
    schedule: Scheduler
    merge: str | None = None
    positions: Literal["original", "compact"] = "original"

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, VisionScorer):
            name = type(self.scorer).__name__
            raise ValueError(f"{name} ranks tokens of a prompt, which the vision tower does not know: leave tower out")
        if self.merge not in (None, "nearest"):
            raise ValueError(f"inside the vision tower tokens are merged by `nearest`, got merge: {self.merge}")
        if self.schedule.needs:
            facts = " and ".join(registry().get("fact", name).about for name in self.schedule.needs)
            raise ValueError(f"{facts} is one of the decoder: give the vision tower another schedule")


Step = Pass | VisionPass


@dataclass(frozen=True)
class Recipe:
    """A name and the passes, in order. Never mentions a model."""

    name: str
    passes: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.passes:
            raise RecipeError(self.name, ["prune: a recipe needs at least one pass, got an empty list"])
        if self.passes != (*self.vision_passes, *self.decoder_passes):
            raise RecipeError(self.name, ["prune: passes with tower: vision come first, pictures are encoded first"])
        for number, step in enumerate(self.decoder_passes, start=len(self.vision_passes)):
            if self.vision_passes and step.reads_blocks:
                reason = f"prune.{number}: it reads the vision tower's states of every token"
                raise RecipeError(self.name, [f"{reason}, and passes with tower: vision have dropped some of them"])

    @property
    def vision_passes(self) -> tuple[VisionPass, ...]:
        """Passes inside the vision tower."""
        return tuple(step for step in self.passes if isinstance(step, VisionPass))

    @property
    def decoder_passes(self) -> tuple[Pass, ...]:
        """Passes in the decoder."""
        return tuple(step for step in self.passes if isinstance(step, Pass))
