"""What built-in schedules share."""

from __future__ import annotations

from ...amounts import (
    Budget,
    kept_for_average,
    resolve_budget,
)
from ...parts.scheduler import PlanInput


def check_one(**budgets: object) -> None:
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(budgets)}; got {' and '.join(given) or 'none'} (null drops a budget)"
        )


def once(layer: int, keep: Budget | None, average: Budget | None, given: PlanInput) -> dict[int, int]:
    """The plan of a single stage; empty when nothing would be dropped."""
    if keep is not None:
        kept = resolve_budget(keep, given.visual)
    else:
        assert average is not None  # check_one
        kept = kept_for_average(average, layer, given.depth, given.visual)
    return {layer: kept} if kept < given.visual else {}
