"""Prune in several steps of any size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from ...amounts import (
    Budget,
    Layer,
    check_budget,
    check_layer,
    fraction,
    resolve_budget,
    resolve_layer,
)
from ...errors import LayerError
from ...parts.scheduler import PlanInput, Scheduler


@dataclass(frozen=True)
class Table(Scheduler):
    """Prune in several steps of any size.

    Args:
        layers: where, as in `fixed`. A fraction above zero is one block at least and leaves one; where steps fall on
            one block, as they do in shallow models, the last one counts.
        keep: tokens or share left after each step.
    """

    layers: tuple[Layer, ...]
    keep: tuple[Budget, ...]

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.keep):
            raise ValueError(f"give as many budgets as layers, got {len(self.layers)} layers and {len(self.keep)} keep")
        for layer in self.layers:
            check_layer(layer)
        for keep in self.keep:
            check_budget(keep)

    def plan(self, given: PlanInput) -> dict[int, int]:
        plan, left, last = {}, given.visual, -1
        for layer, keep in zip(self.layers, self.keep, strict=True):
            if isinstance(layer, str) and fraction(layer) > 0:
                nearest = int(fraction(layer) * given.depth + Fraction(1, 2))
                at = min(max(nearest, 1), given.depth - 1)
            else:
                at = resolve_layer(layer, given.depth)
            if at < last:
                raise LayerError(f"table layers {list(self.layers)} must ascend: {layer} comes before block {last}")
            last, kept = at, resolve_budget(keep, given.visual)
            if kept < left:
                plan[at] = left = kept
        return plan
