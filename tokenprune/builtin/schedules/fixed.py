"""Prune once, after a given layer."""

from __future__ import annotations

from dataclasses import dataclass

from ...amounts import (
    Budget,
    Layer,
    check_budget,
    check_layer,
    resolve_layer,
)
from ...parts.scheduler import PlanInput, Scheduler
from .base import check_one, once


@dataclass(frozen=True)
class Fixed(Scheduler):
    """Prune once, after a given layer.

    Args:
        layer: decoder blocks that see every token, or a fraction of the depth such as `16/32`.
        keep: tokens (int) or share (float, or "1/3") that stay.
        average: the same, but as the mean over all decoder blocks.
    """

    layer: Layer
    keep: Budget | None = None
    average: Budget | None = None

    def __post_init__(self) -> None:
        check_layer(self.layer)
        check_one(keep=self.keep, average=self.average)
        check_budget(self.keep)
        check_budget(self.average)

    def plan(self, given: PlanInput) -> dict[int, int]:
        return once(resolve_layer(self.layer, given.depth), self.keep, self.average, given)
