"""The contract of schedules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from ..errors import BudgetError, LayerError
from ..parts.scheduler import PlanInput, Scheduler
from ..registry import registry
from .base import Contract

DEPTHS = (1, 2, 4, 6, 7, 28, 32)
COUNTS = (0, 1, 2, 3, 16, 36, 576, 577, 2880)
SHAPES = [(depth, visual) for depth in DEPTHS for visual in COUNTS]


def planned(scheduler: Scheduler, shape: PlanInput) -> dict[int, int] | LayerError | BudgetError:
    """Its plan, or the error that it may raise."""
    try:
        return scheduler.plan(shape)
    except (LayerError, BudgetError) as error:
        return error


def shape(depth: int, visual: int) -> PlanInput:
    """With every registered fact."""
    facts = {name: entry.part().example(depth) for name, entry in registry().entries["fact"].items()}
    return PlanInput(depth, visual, facts)


def _fits(scheduler: Scheduler, depth: int) -> bool:
    return not isinstance(planned(scheduler, shape(depth, 576)), Exception)


class TestScheduler(Contract):
    """What every schedule must do."""

    def test_its_settings_are_a_value(self, scheduler: Scheduler) -> None:
        self.check_value(scheduler)

    def test_plans_go_down(self, scheduler: Scheduler) -> None:
        """Layers ascend inside the model, and at each fewer tokens stay, of however many there are."""
        for depth, visual in SHAPES:
            plan = planned(scheduler, shape(depth, visual))
            if isinstance(plan, Exception):
                continue
            assert isinstance(plan, dict), f"expected {{layer: tokens kept}}, got {plan!r}"
            assert all(type(number) is int for item in plan.items() for number in item), f"expected ints, got {plan}"
            assert list(plan) == sorted(plan), f"layers must ascend, got {plan}"
            assert all(0 <= layer < depth for layer in plan), f"a layer of {plan} is none of {depth} blocks"
            counts = [visual, *plan.values()]
            assert all(a > b >= 0 for a, b in pairwise(counts)), f"counts must go down from {visual}, got {plan}"

    def test_it_drops_something(self, scheduler: Scheduler) -> None:
        plans = [planned(scheduler, shape(depth, visual)) for depth, visual in SHAPES]
        assert any(plan for plan in plans if isinstance(plan, dict)), f"no tokens are dropped: {plans[-1]}"

    def test_it_is_pure(self, scheduler: Scheduler) -> None:
        for depth, visual in SHAPES:
            once, again = (planned(scheduler, shape(depth, visual)) for _ in range(2))
            assert str(once) == str(again), f"two plans for {visual} tokens differ"

    def test_a_missing_layer_is_missing_for_every_prompt(self, scheduler: Scheduler) -> None:
        """It is then said before the model runs."""
        for depth in DEPTHS:
            missing = {isinstance(planned(scheduler, shape(depth, visual)), LayerError) for visual in COUNTS}
            assert len(missing) == 1, "LayerError must not depend on the number of tokens"

    def test_it_says_what_facts_it_needs(self, scheduler: Scheduler) -> None:
        for depth, visual in SHAPES:
            every = shape(depth, visual)
            needed = replace(every, facts={name: every.facts[name] for name in scheduler.needs})
            plans = {str(planned(scheduler, given)) for given in (every, needed)}
            assert len(plans) == 1, "the plan depends on facts that it does not name: list them in `needs`"
