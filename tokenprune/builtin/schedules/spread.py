"""Drop a few tokens after many blocks (EvoPrune, arXiv 2603.03681; ToMe, arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal

from ...amounts import (
    Budget,
    check_budget,
    resolve_budget,
)
from ...errors import LayerError
from ...parts.scheduler import PlanInput, Scheduler
from .base import check_one


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
        check_one(keep=self.keep, remove=self.remove)
        check_budget(self.keep)
        if self.remove is not None and self.remove < 0:
            raise ValueError(f"remove must be >= 0, got {self.remove}")
        if self.blocks is not None and (self.strategy not in ("first", "last") or self.blocks < 1):
            raise ValueError(f"blocks is for first and last, and 1 at least, got {self.blocks} with {self.strategy}")
        if not 0 <= self.alpha <= 100:
            raise ValueError(f"alpha must lie in [0, 100], got {self.alpha}")
        if self.remove is not None and self.strategy in ("increasing", "decreasing"):
            raise ValueError(f"{self.strategy} shares out what a `keep` leaves to go: it takes no `remove`")

    def plan(self, given: PlanInput) -> dict[int, int]:
        layers = list(range(1, given.depth))
        some = self.blocks or (len(layers) + 1) // 2
        if self.blocks is not None and self.blocks > len(layers):
            raise LayerError(f"spread over {self.blocks} blocks: {len(layers)} steps are there, after block 1 and on")
        chosen = {"skip": layers[::2], "first": layers[:some], "last": layers[-some:]}.get(self.strategy, layers)
        if not chosen:
            raise LayerError(f"spread drops tokens after the first block and later ones: this depth is {given.depth}")
        plan, left = {}, given.visual
        for layer, kept in zip(chosen, self._counts(len(chosen), given.visual), strict=True):
            if kept < left:
                plan[layer] = left = kept
        return plan

    def _counts(self, steps: int, visual: int) -> list[int]:
        if self.remove is not None:
            counts = accumulate(range(steps), lambda left, _: left - min(self.remove or 0, left // 2), initial=visual)
            return list(counts)[1:]
        assert self.keep is not None  # check_one
        gone = visual - resolve_budget(self.keep, visual)
        weights = [1.0] * steps
        if self.strategy in ("increasing", "decreasing"):
            weights = [(i / steps) ** self.alpha for i in range(1, steps + 1)]
        if self.strategy == "decreasing":
            weights.reverse()
        *_, whole = so_far = list(accumulate(map(Fraction, weights)))
        return [visual - int(gone * part / whole) for part in so_far]
