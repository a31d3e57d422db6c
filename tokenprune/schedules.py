"""Built-in schedules. Pure functions of the shape: after which layer, how many tokens stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import ClassVar, Literal

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


@dataclass(frozen=True)
class Spread(Scheduler):
    """Drop a few tokens after many blocks (EvoPrune, arXiv 2603.03681, appendix A; ToMe's r, arXiv 2210.09461).

    With `keep`, what goes is shared out among the steps by weight, and the total is exact: after each step, as many
    are gone as the weights so far call for, rounded down.

    Args:
        keep: tokens or share left after the last step.
        remove: instead, tokens dropped at each step, at most half of what is left.
        strategy: `mean` steps after every block, `skip` after every other one, `first` and `last` after some of them;
            `increasing` and `decreasing` step after every block with weights `i^alpha`, i counted from either end.
        blocks: how many, for `first` and `last`; half of those there are by default.
        alpha: for `increasing` and `decreasing`.
    """

    keep: Budget | None = None
    remove: int | None = None
    strategy: Literal["mean", "skip", "first", "last", "increasing", "decreasing"] = "skip"
    blocks: int | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_one(keep=self.keep, remove=self.remove)
        check_budget(self.keep)
        if self.remove is not None and self.remove < 0:
            raise ValueError(f"remove must be >= 0, got {self.remove}")
        if self.blocks is not None and (self.strategy not in ("first", "last") or self.blocks < 1):
            raise ValueError(f"blocks is for first and last, and 1 at least, got {self.blocks} with {self.strategy}")
        if not 0 <= self.alpha <= 100:
            raise ValueError(f"alpha must lie in [0, 100], got {self.alpha}")
        if self.remove is not None and self.strategy in ("increasing", "decreasing"):
            raise ValueError(f"{self.strategy} shares out what a `keep` leaves to go: it takes no `remove`")

    def plan(self, shape: Shape) -> dict[int, int]:
        layers = list(range(1, shape.depth))
        some = self.blocks or (len(layers) + 1) // 2
        if self.blocks is not None and self.blocks > len(layers):
            raise LayerError(f"spread over {self.blocks} blocks: {len(layers)} steps are there, after block 1 and on")
        chosen = {"skip": layers[::2], "first": layers[:some], "last": layers[-some:]}.get(self.strategy, layers)
        if not chosen:
            raise LayerError(f"spread drops tokens after the first block and later ones: this depth is {shape.depth}")
        plan, left = {}, shape.visual
        for layer, kept in zip(chosen, self._counts(len(chosen), shape.visual), strict=True):
            if kept < left:
                plan[layer] = left = kept
        return plan

    def _counts(self, steps: int, visual: int) -> list[int]:
        if self.remove is not None:
            counts = accumulate(range(steps), lambda left, _: left - min(self.remove or 0, left // 2), initial=visual)
            return list(counts)[1:]
        assert self.keep is not None  # _check_one
        gone = visual - resolve_budget(self.keep, visual)
        weights = [1.0] * steps
        if self.strategy in ("increasing", "decreasing"):
            weights = [(i / steps) ** self.alpha for i in range(1, steps + 1)]
        if self.strategy == "decreasing":
            weights.reverse()
        *_, whole = so_far = list(accumulate(map(Fraction, weights)))
        return [visual - int(gone * part / whole) for part in so_far]
