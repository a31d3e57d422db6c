"""Built-in schedules. Pure functions of the shape: after which layer, how many tokens stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from .errors import BudgetError, LayerError
from .interfaces import Scheduler
from .values import (
    Budget,
    Layer,
    Shape,
    check_budget,
    check_layer,
    fraction,
    kept_for_average,
    resolve_budget,
    resolve_layer,
)


def _check_one(**budgets: object) -> None:
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(budgets)}; got {' and '.join(given) or 'none'} (null drops a budget)"
        )


def _once(layer: int, keep: Budget | None, average: Budget | None, shape: Shape) -> dict[int, int]:
    """The plan of a single stage; empty when nothing would be dropped."""
    if keep is not None:
        kept = resolve_budget(keep, shape.visual)
    else:
        assert average is not None  # _check_one
        kept = kept_for_average(average, layer, shape.depth, shape.visual)
    return {layer: kept} if kept < shape.visual else {}


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
        _check_one(keep=self.keep, average=self.average)
        check_budget(self.keep)
        check_budget(self.average)

    def plan(self, shape: Shape) -> dict[int, int]:
        return _once(resolve_layer(self.layer, shape.depth), self.keep, self.average, shape)


@dataclass(frozen=True)
class Ecl(Scheduler):
    """Prune once, at the model's Entropy Collapse Layer (arXiv 2602.17196, section 3.3), found by itself.

    Args:
        keep: tokens (int) or share (float, or "1/3") that stay.
        average: the same, but as the mean over all decoder blocks.
    """

    needs_ecl: ClassVar[bool] = True

    keep: Budget | None = None
    average: Budget | None = None

    def __post_init__(self) -> None:
        _check_one(keep=self.keep, average=self.average)
        check_budget(self.keep)
        check_budget(self.average)

    def plan(self, shape: Shape) -> dict[int, int]:
        if shape.ecl is None:
            raise LayerError("the Entropy Collapse Layer is not known yet: run `tokenprune calibrate` or give a layer")
        return _once(resolve_layer(shape.ecl, shape.depth), self.keep, self.average, shape)


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

    def plan(self, shape: Shape) -> dict[int, int]:
        plan, left, last = {}, shape.visual, -1
        for layer, keep in zip(self.layers, self.keep, strict=True):
            if isinstance(layer, str) and fraction(layer) > 0:
                nearest = int(fraction(layer) * shape.depth + Fraction(1, 2))
                at = min(max(nearest, 1), shape.depth - 1)
            else:
                at = resolve_layer(layer, shape.depth)
            if at < last:
                raise LayerError(f"table layers {list(self.layers)} must ascend: {layer} comes before block {last}")
            last, kept = at, resolve_budget(keep, shape.visual)
            if kept < left:
                plan[at] = left = kept
        return plan


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
        _check_one(ratio=self.ratio, keep=self.keep, average=self.average)
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must lie in [0, 1], got {self.ratio}")
        check_budget(self.keep)
        check_budget(self.average)

    def plan(self, shape: Shape) -> dict[int, int]:
        layers = [resolve_layer(layer, shape.depth) for layer in self.layers]
        if sorted(set(layers)) != layers:
            raise LayerError(
                f"pyramid layers {list(self.layers)} fall on blocks {layers} of {shape.depth}: they must ascend, each "
                "on its own block"
            )
        plan, left = {}, shape.visual
        for layer, kept in zip(layers, self._counts(layers, shape), strict=True):
            if kept < left:
                plan[layer] = left = kept
        return plan

    def _counts(self, layers: Sequence[int], shape: Shape) -> list[int]:
        steps = range(1, len(layers) + 1)
        if self.ratio is not None:
            share = Fraction(str(self.ratio))  # 0.1 as written, not its binary neighbour
            return [int(shape.visual * share**step) for step in steps]
        if self.keep is not None:
            last = resolve_budget(self.keep, shape.visual)
            ratio = (last / shape.visual) ** (1 / len(layers)) if shape.visual else 0.0
            return [round(shape.visual * ratio**step) for step in steps[:-1]] + [last]
        assert self.average is not None  # _check_one
        return self._counts_for_average(self.average, layers, shape)

    def _counts_for_average(self, average: Budget, layers: Sequence[int], shape: Shape) -> list[int]:
        target = resolve_budget(average, shape.visual) * shape.depth
        spans = [end - start for start, end in zip(layers, [*layers[1:], shape.depth], strict=True)]
        before = layers[0] * shape.visual

        def counts(ratio: float) -> list[int]:
            return [int(shape.visual * ratio**step) for step in range(1, len(layers) + 1)]

        def total(ratio: float) -> int:
            return before + sum(span * kept for span, kept in zip(spans, counts(ratio), strict=True))

        if total(0.0) > target:
            raise BudgetError(
                f"average {average} cannot be reached: {layers[0]} of {shape.depth} blocks see all {shape.visual} "
                f"visual tokens, so the smallest average is {-(-before // shape.depth)}. Prune at an earlier layer."
            )
        low, high = 0.0, 1.0
        if total(high) <= target:
            return counts(high)
        for _ in range(60):  # counts are integers: this is exact long before the last step
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) <= target else (low, middle)
        return counts(low)
