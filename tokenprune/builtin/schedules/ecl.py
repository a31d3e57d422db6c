"""Prune once, at the Entropy Collapse Layer (arXiv 2602.17196)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...amounts import (
    Budget,
    check_budget,
    resolve_layer,
)
from ...errors import LayerError
from ...parts.scheduler import PlanInput, Scheduler
from .base import check_one, once


@dataclass(frozen=True)
class Ecl(Scheduler):
    """Prune once, at the model's Entropy Collapse Layer (arXiv 2602.17196, section 3.3), found by itself.

    Args:
        keep: tokens (int) or share (float, or "1/3") that stay.
        average: the same, but as the mean over all decoder blocks.
    """

    needs: ClassVar[tuple[str, ...]] = ("ecl",)
    with_layer: ClassVar[str | None] = "fixed"

    keep: Budget | None = None
    average: Budget | None = None

    def __post_init__(self) -> None:
        check_one(keep=self.keep, average=self.average)
        check_budget(self.keep)
        check_budget(self.average)

    def plan(self, given: PlanInput) -> dict[int, int]:
        layer = given.facts.get("ecl")
        if layer is None:
            raise LayerError("the Entropy Collapse Layer is not known yet: run `tokenprune calibrate` or give a layer")
        return once(resolve_layer(layer, given.depth), self.keep, self.average, given)
