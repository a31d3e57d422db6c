"""Prune in several steps of one ratio (PyramidDrop, arXiv 2410.17247)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ...amounts import (
    Budget,
    Layer,
    check_budget,
    check_layer,
    resolve_budget,
    resolve_layer,
)
from ...errors import BudgetError, LayerError
from ...parts.scheduler import PlanInput, Scheduler
from .base import check_one


@dataclass(frozen=True)
class Pyramid(Scheduler):
    """Prune in several steps (PyramidDrop, arXiv 2410.17247).

    Args:
        layers: where, as in `fixed`.
        ratio: share of the tokens that each step leaves; counts are `int(visual * ratio**step)`.
        keep: tokens or share left after the last step; the ratio follows.
        average: mean over all decoder blocks; the largest ratio that stays within it.
    """

    layers: tuple[Layer, ...]
    ratio: float | None = None
    keep: Budget | None = None
    average: Budget | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers must name at least one layer, got an empty list")
        for layer in self.layers:
            check_layer(layer)
        check_one(ratio=self.ratio, keep=self.keep, average=self.average)
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must lie in [0, 1], got {self.ratio}")
        check_budget(self.keep)
        check_budget(self.average)

    def plan(self, given: PlanInput) -> dict[int, int]:
        layers = [resolve_layer(layer, given.depth) for layer in self.layers]
        if sorted(set(layers)) != layers:
            raise LayerError(
                f"pyramid layers {list(self.layers)} fall on blocks {layers} of {given.depth}: they must ascend, each "
                "on its own block"
            )
        plan, left = {}, given.visual
        for layer, kept in zip(layers, self._counts(layers, given), strict=True):
            if kept < left:
                plan[layer] = left = kept
        return plan

    def _counts(self, layers: Sequence[int], given: PlanInput) -> list[int]:
        steps = range(1, len(layers) + 1)
        if self.ratio is not None:
            share = Fraction(str(self.ratio))  # 0.1 as written, not its binary neighbour
            return [int(given.visual * share**step) for step in steps]
        if self.keep is not None:
            last = resolve_budget(self.keep, given.visual)
            ratio = (last / given.visual) ** (1 / len(layers)) if given.visual else 0.0
            return [round(given.visual * ratio**step) for step in steps[:-1]] + [last]
        assert self.average is not None  # check_one
        return self._counts_for_average(self.average, layers, given)

    def _counts_for_average(self, average: Budget, layers: Sequence[int], given: PlanInput) -> list[int]:
        target = resolve_budget(average, given.visual) * given.depth
        spans = [end - start for start, end in zip(layers, [*layers[1:], given.depth], strict=True)]
        before = layers[0] * given.visual

        def counts(ratio: float) -> list[int]:
            return [int(given.visual * ratio**step) for step in range(1, len(layers) + 1)]

        def total(ratio: float) -> int:
            return before + sum(span * kept for span, kept in zip(spans, counts(ratio), strict=True))

        if total(0.0) > target:
            raise BudgetError(
                f"average {average} cannot be reached: {layers[0]} of {given.depth} blocks see all {given.visual} "
                f"visual tokens, so the smallest average is {-(-before // given.depth)}. Prune at an earlier layer."
            )
        low, high = 0.0, 1.0
        if total(high) <= target:
            return counts(high)
        for _ in range(60):  # counts are integers: this is exact long before the last step
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) <= target else (low, middle)
        return counts(low)
