"""What was measured of one recipe."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ...plan.cost import DecoderSize
from .clock import Run
from .flops import Flops


@dataclass(frozen=True)
class Spread:
    """Of one quantity over the runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Form:
    """One recipe, or nothing pruned, and what its runs gave, before it is compared with the unpruned ones.

    Attributes:
        name: as given.
        plan: `{layer: visual tokens kept}`.
        runs: counted ones, in order.
        scoring: time inside scorers as a share, see `Measured.scoring_share`.
        flops: of the prefill.
    """

    name: str
    plan: dict[int, int]
    runs: Sequence[Run]
    scoring: float
    flops: Flops


@dataclass(frozen=True)
class Measured:
    """One recipe, or nothing pruned.

    Attributes:
        name: as given.
        plan: `{layer: visual tokens kept}`.
        average: visual tokens, as a mean over the decoder blocks.
        spread: of each field of `Run`, over the runs; none for memory that is not known.
        tower_speed_up: unpruned / pruned encoding of the pictures, the median over pairs of neighbouring runs.
        speed_up: the same of the prefill.
        total_speed_up: the same of the whole run.
        tower_bound: what `tower_speed_up` would be if time were FLOPs, scorers apart: unpruned / pruned, counted.
        bound: the same of `speed_up`, by formula.
        scoring_share: time inside scorers as a share of the pruned prefill, in runs of their own; of tower and prefill
            together where the recipe prunes inside the tower.
        flops: see there.
    """

    name: str
    plan: dict[int, int]
    average: float
    spread: dict[str, Spread | None]
    tower_speed_up: float
    speed_up: float
    total_speed_up: float
    tower_bound: float
    bound: float
    scoring_share: float
    flops: Flops

    @classmethod
    def of(cls, form: Form, unpruned: Form, size: DecoderSize, visual: int) -> Measured:
        """A form beside the unpruned one, run by run: the runs of one round are neighbours in time."""
        pairs = list(zip(unpruned.runs, form.runs, strict=True))
        return cls(
            name=form.name,
            plan=form.plan,
            average=sum(size.tokens(form.plan, visual)) / size.depth,
            spread=_spread(form.runs),
            tower_speed_up=statistics.median(a.tower_ms / b.tower_ms for a, b in pairs),
            speed_up=statistics.median(a.prefill_ms / b.prefill_ms for a, b in pairs),
            total_speed_up=statistics.median(a.total_ms / b.total_ms for a, b in pairs),
            tower_bound=unpruned.flops.tower / form.flops.tower,
            bound=unpruned.flops.formula / form.flops.formula,
            scoring_share=form.scoring,
            flops=form.flops,
        )

    def median(self, key: str) -> float:
        """Of a field of `Run`."""
        spread = self.spread[key]
        return spread.median if spread is not None else float("nan")


def _spread(runs: Sequence[Run]) -> dict[str, Spread | None]:
    """Of each field of the runs, where it is known."""
    found: dict[str, Spread | None] = {}
    for key in (entry.name for entry in fields(Run)):
        values = [value for run in runs if (value := getattr(run, key)) is not None]
        found[key] = Spread.of(values) if values else None
    return found
