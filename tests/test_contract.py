"""Everything registered keeps the contract, and what does not is found."""

from __future__ import annotations

from typing import Any

from tokenprune.contract import test_adapter, test_merger, test_scheduler, test_scorer
from tokenprune.registry import registry

THREE = ["8/32", "16/32", "24/32"]
BUDGETS: list[dict[str, Any]] = [{"keep": k} for k in (0, 1, 7, 0.5, "1/3")] + [{"average": 0.9}]
SCHEDULES = [
    {**schedule, **budget}
    for budget in BUDGETS
    for schedule in (
        {"name": "fixed", "layer": 1},
        {"name": "ecl"},
        {"name": "pyramid", "layers": [0, 2, 5]},
        {"name": "pyramid", "layers": THREE},
    )
] + [
    {"name": "table", "layers": [0, 2, 5], "keep": [0.9, 12, "1/8"]},
    {"name": "table", "layers": ["1/32", *THREE, "31/32"], "keep": [90, 80, 9, 9, 0]},
]


class TestEveryScorer(test_scorer.TestScorer):
    parts = tuple(registry().entries["scorer"])


class TestEverySchedule(test_scheduler.TestScheduler):
    parts = (*registry().entries["scheduler"], *SCHEDULES)


class TestEveryMerger(test_merger.TestMerger):
    parts = tuple(registry().entries["merger"])


class TestEveryAdapter(test_adapter.TestAdapter):
    parts = tuple(registry().entries["adapter"])
