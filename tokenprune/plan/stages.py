"""From a recipe to stages: which pass drops how many tokens of each prompt at which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from numbers import Integral
from typing import Any, Generic, TypeVar

from ..amounts import Budget
from ..errors import BudgetError, LayerError, RecipeError, ScheduleError, TokenpruneError
from ..parts.scheduler import PlanInput
from ..recipe import Pass, Recipe, Step, VisionPass
from ..registry import registry
from .cost import DecoderSize
from .rescale import rescale

Facts = Mapping[str, Any]
"""About the model, by name: what schedules need."""


StepT = TypeVar("StepT", Pass, VisionPass)


@dataclass(frozen=True)
class Stage(Generic[StepT]):
    """What happens at one layer: which pass, and how many visual tokens each prompt has before and after.

    `vision_layer` counts the blocks of the vision tower that ran before, if that is where it happens.
    """

    step: StepT
    before: tuple[int, ...]
    kept: tuple[int, ...]
    vision_layer: int | None = None


def plan(step: Step, given: PlanInput) -> dict[int, int]:
    """What a pass's schedule plans, checked. Raises ScheduleError, and what `Scheduler.plan` raises."""
    who = f"{registry().origin('scheduler', type(step.schedule))}, planning {given.visual} visual tokens,"
    try:
        planned: Any = step.schedule.plan(given)
    except TokenpruneError:
        raise
    except Exception as error:
        raise ScheduleError(f"{who} failed with {type(error).__name__}: {error}") from error
    if not _possible(planned, given):
        raise ScheduleError(
            f"{who} must give {{layer: tokens kept}} with layers from 0 to {given.depth - 1} and counts that go down "
            f"from {given.visual}, got {planned!r}"
        )
    return {int(layer): int(kept) for layer, kept in planned.items()}


def _possible(planned: Any, given: PlanInput) -> bool:
    if not isinstance(planned, Mapping) or not all(isinstance(n, Integral) for item in planned.items() for n in item):
        return False
    counts = [given.visual, *(planned[layer] for layer in sorted(planned))]
    return all(0 <= layer < given.depth for layer in planned) and all(a >= b >= 0 for a, b in pairwise(counts))


def plan_stages(
    recipe: Recipe,
    depth: int,
    counts: Sequence[int],
    facts: Facts,
    budget: Budget | None = None,
    before_vision: Sequence[int] | None = None,
) -> dict[int, Stage[Pass]]:
    """Every prompt's plan for the decoder (`counts` visual tokens each), by layer, without layers that drop nothing.

    With a budget, each prompt's keeps are rescaled for its own number of visual tokens; `before_vision` says how many
    those were before passes inside the vision tower.

    Raises LayerError, BudgetError, and RecipeError if the passes do not go down the decoder in order.
    """
    steps, plans = _put_together(recipe.name, recipe.decoder_passes, depth, counts, facts)
    if budget is not None and recipe.decoder_passes:
        plans = [
            rescale(planned, depth, n, budget, of)
            for planned, n, of in zip(plans, counts, before_vision or counts, strict=True)
        ]
    return _stages(steps, plans, counts)


def plan_vision(
    recipe: Recipe, vision_depth: int, depth: int, counts: Sequence[int], facts: Facts, budget: Budget | None = None
) -> dict[int, Stage[VisionPass]]:
    """What the passes inside the vision tower do to pictures of `counts` tokens, by layer of the tower.

    Each picture keeps one token at least: towers do not run on nothing.

    With a budget, what each step drops is rescaled, so that decoder passes rescaled by the same factor meet it.

    Args:
        vision_depth: blocks of the vision tower that count, and the projector.
        depth: decoder blocks.

    Raises LayerError, BudgetError, and RecipeError if the passes do not go up the tower in order.
    """
    if isinstance(budget, int):
        raise BudgetError(
            f"a recipe with tower: vision drops tokens before it knows the prompt: give its budget as a share of the "
            f"visual tokens, such as 1/3, got {budget} tokens"
        )
    try:
        steps, plans = _put_together(recipe.name, recipe.vision_passes, vision_depth, counts, {})
    except LayerError as error:
        raise LayerError(f"inside the vision tower (its last block is the projector): {error}") from error
    if budget is not None:
        for row, n in enumerate(counts):
            kept = min(plans[row].values(), default=n)
            _, (after,) = _put_together(recipe.name, recipe.decoder_passes, depth, [kept], facts)
            wanted = _rescaled(kept, after, depth, n, budget)
            share = Fraction(n - wanted, max(n - kept, 1))
            plans[row] = {layer: n - int((n - left) * share) for layer, left in plans[row].items()}
    plans = [{layer: max(1, left) for layer, left in planned.items()} for planned in plans]
    return _stages(steps, plans, counts)


def plan_whole(
    recipe: Recipe, sizes: DecoderSize, visual: int, facts: Facts, budget: Budget | None = None
) -> dict[int, int]:
    """`{layer: visual tokens kept}` of one prompt, as far as shapes tell; layers below 0 are of the vision tower.

    Raises what `plan_vision` and `plan_stages` raise.
    """
    plan, left = {}, visual
    if recipe.vision_passes:
        if isinstance(budget, int):
            budget = f"{min(budget, visual)}/{visual}"
        (each, rest) = divmod(visual, sizes.pictures)
        before = plan_vision(recipe, sizes.vision_depth, sizes.depth, [each - sizes.cls], facts, budget)
        for layer, stage in before.items():
            plan[layer - sizes.vision_depth] = left = sizes.pictures * (stage.kept[0] + sizes.cls) + rest
    stages = plan_stages(recipe, sizes.depth, [left], facts, budget, before_vision=[visual])
    return {**plan, **{layer: after.kept[0] for layer, after in stages.items()}}


def _rescaled(kept: int, after: Mapping[int, int], depth: int, n: int, budget: Budget) -> int:
    """What a tower that leaves `kept` of `n` tokens to a decoder with this plan should leave to meet the budget."""
    plan = {0: kept, **after}  # a stage at layer 0 comes right after the tower
    scaled = rescale({layer: count for layer, count in plan.items() if count < n}, depth, n, budget)
    if plan[0] in (0, n):
        return kept
    return min(n, max(scaled.get(0, n), round(kept * scaled.get(0, n) / plan[0])))


def _stages(
    steps: Mapping[int, StepT], plans: Sequence[Mapping[int, int]], counts: Sequence[int]
) -> dict[int, Stage[StepT]]:
    stages: dict[int, Stage[StepT]] = {}
    left = tuple(counts)
    for layer, step in steps.items():
        kept = tuple(planned.get(layer, now) for now, planned in zip(left, plans, strict=True))
        if kept != left:
            stages[layer] = Stage(step, left, kept)
            left = kept
    return stages


def _put_together(
    recipe: str, passes: Sequence[StepT], depth: int, counts: Sequence[int], facts: Facts
) -> tuple[dict[int, StepT], list[dict[int, int]]]:
    """The pass at each layer where some prompt drops tokens, layers ascending, and each prompt's `{layer: kept}`."""
    steps: dict[int, StepT] = {}
    together: list[dict[int, int]] = [{} for _ in counts]
    left = list(counts)
    for step in passes:
        plans = [plan(step, PlanInput(depth, visual=n, facts=facts)) if n else {} for n in counts]
        for layer in sorted({layer for planned in plans for layer in planned}):
            if steps and layer <= max(steps):
                raise RecipeError(recipe, [f"two passes meet at layer {layer} of {depth}: layers must ascend"])
            for row, planned in enumerate(plans):
                if planned.get(layer, left[row]) < left[row]:
                    steps[layer] = step
                    together[row][layer] = left[row] = planned[layer]
    return steps, together
