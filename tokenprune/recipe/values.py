"""What a recipe is: a name and passes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import RecipeError
from ..parts.merger import Merger, reads
from ..parts.scheduler import Scheduler
from ..parts.scorer import Scorer, VisionScorer
from ..registry import registry

SCORERS = (Scorer, VisionScorer)

RecipeLike = typing.Union["Recipe", Mapping[str, Any], str, Path]
"""A name (`entropyprune`, `entropyprune@128`), a path, a mapping as in YAML, or a Recipe."""


@dataclass(frozen=True)
class Pass:
    """One scorer and one schedule.

    Args:
        scorer: ranks the tokens.
        schedule: says where, and how many stay.
        merge: name of a merger that folds the dropped tokens into the kept ones first; None just drops. Inside the
            vision tower there is `nearest`: means weighted by how many tokens each stands for, into the token that the
            scorer names, or the kept one with the most similar rows.
        positions: `original` leaves the decoder's positions as they were; `compact` numbers what is left anew. After a
            pass inside the vision tower that is what enters the decoder: rotary positions in the tower never change.
        tower: `vision` prunes inside the vision tower, where `layer` counts its blocks (the projector is the last one)
            and budgets are of each picture, tile or frame; None prunes in the decoder.
    """

    scorer: Scorer | VisionScorer
    schedule: Scheduler
    merge: str | None = None
    positions: Literal["original", "compact"] = "original"
    tower: Literal["vision"] | None = None

    def __post_init__(self) -> None:
        name = type(self.scorer).__name__
        if self.tower is None:
            if not isinstance(self.scorer, Scorer):
                raise ValueError(f"{name} ranks pictures inside the vision tower: give its pass tower: vision")
            return
        if not isinstance(self.scorer, VisionScorer):
            raise ValueError(f"{name} ranks tokens of a prompt, which the vision tower does not know: leave tower out")
        if self.merge not in (None, "nearest"):
            raise ValueError(f"inside the vision tower tokens are merged by `nearest`, got merge: {self.merge}")
        if self.schedule.needs_ecl:
            raise ValueError("the Entropy Collapse Layer is one of the decoder: give the vision tower another schedule")

    @property
    def merger(self) -> Merger | None:
        return None if self.merge is None else registry().get("merger", self.merge)


@dataclass(frozen=True)
class Recipe:
    """A name and the passes, in order. Never mentions a model."""

    name: str
    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        if not self.passes:
            raise RecipeError(self.name, ["prune: a recipe needs at least one pass, got an empty list"])
        if self.passes != (*self.vision_passes, *self.decoder_passes):
            raise RecipeError(self.name, ["prune: passes with tower: vision come first, pictures are encoded first"])
        for number, step in enumerate(self.passes):
            if self.vision_passes and not step.tower and (step.scorer.reads_blocks or reads(step.merger)):  # type: ignore[union-attr]
                reason = f"prune.{number}: it reads the vision tower's states of every token"
                raise RecipeError(self.name, [f"{reason}, and passes with tower: vision have dropped some of them"])

    @property
    def vision_passes(self) -> tuple[Pass, ...]:
        """Passes inside the vision tower."""
        return tuple(step for step in self.passes if step.tower)

    @property
    def decoder_passes(self) -> tuple[Pass, ...]:
        """Passes in the decoder."""
        return tuple(step for step in self.passes if not step.tower)
