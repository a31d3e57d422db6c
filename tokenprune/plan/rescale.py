"""One budget for every recipe: the keeps of a plan scaled by one factor until the mean over the blocks is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

from ..amounts import Budget, fraction
from ..errors import BudgetError


def rescale(plan: Mapping[int, int], depth: int, visual: int, budget: Budget, of: int | None = None) -> dict[int, int]:
    """The plan with every keep multiplied by one factor, so that its average over the blocks meets the budget.

    A keep is at most `visual`, and within one token of its exact value: the first stages are rounded up, so that the
    average is as near the budget as whole tokens allow, and never more than half a token off. Stages that no longer
    drop anything disappear. A plan that is near enough, and a budget of all tokens (`{}`), need no factor.

    Args:
        plan: `{layer: tokens kept}` of one prompt, all passes together.
        depth: decoder blocks.
        visual: visual tokens of the prompt.
        budget: mean over all blocks of the visual tokens that each sees, in tokens or as a share of `visual`. Written
            in percent (`"30%"`), errors speak of percent too.
        of: what a share is of, where the prompt had more tokens before its decoder: `visual` of them are left.

    Raises:
        BudgetError: no factor gives this average; the message says which ones there are, and what to change.
    """
    whole = visual if of is None else of
    target = _tokens(budget, whole) * depth  # summed over the blocks, as everything below
    if target >= depth * visual:
        return {}
    spans = [end - start for start, end in pairwise([0, *plan, depth])]
    stages = [(span, kept) for span, kept in zip(spans[1:], plan.values(), strict=True) if kept]  # what 0 keeps stays 0
    before = min(plan, default=depth) * visual
    most = before + visual * sum(span for span, _ in stages)
    if not before - Fraction(depth, 2) <= target <= most + Fraction(depth, 2):
        percent_of = whole if isinstance(budget, str) and "%" in budget else None
        raise BudgetError(f"budget {budget} cannot be reached: {_unreachable(plan, depth, visual, target, percent_of)}")
    if 2 * abs(target - before - sum(span * kept for span, kept in stages)) <= max(spans):
        return dict(plan)  # rounding may leave as much
    rest = min(max(target, Fraction(before)), Fraction(most)) - before
    counts = _rounded(stages, _scaled(stages, visual, rest), rest)
    scaled, left = {}, visual
    for layer, count in zip(plan, [*counts, *[0] * (len(plan) - len(counts))], strict=True):
        if count < left:
            scaled[layer] = left = count
    return scaled


def _tokens(budget: Budget, visual: int) -> Fraction:
    """Tokens meant, not rounded: shares as written."""
    if isinstance(budget, int):
        return Fraction(budget)
    return (fraction(budget) if isinstance(budget, str) else Fraction(str(budget))) * visual


def _scaled(stages: Sequence[tuple[int, int]], visual: int, rest: Fraction) -> list[Fraction]:
    """Exact keeps of `stages` (span, kept > 0): `min(factor * kept, visual)`, which sum to `rest` over the blocks."""
    capped = 0
    for span, kept in stages:  # the first keep is the largest, so it is the first to reach `visual`
        factor = rest / sum(span * kept for span, kept in stages[capped:])
        if factor * kept <= visual:
            break
        capped, rest = capped + 1, rest - span * visual
    return [Fraction(visual)] * capped + [factor * kept for _, kept in stages[capped:]]


def _rounded(stages: Sequence[tuple[int, int]], exact: Sequence[Fraction], rest: Fraction) -> list[int]:
    """Whole keeps: down, then up from the first stage on while that brings their sum nearer to `rest`."""
    counts = [int(keep) for keep in exact]
    missing = rest - sum(span * count for (span, _), count in zip(stages, counts, strict=True))
    for i, (span, _) in enumerate(stages):
        if 2 * missing < span:
            break
        if counts[i] != exact[i]:
            counts[i] += 1
            missing -= span
    return counts


def _unreachable(plan: Mapping[int, int], depth: int, visual: int, target: Fraction, percent_of: int | None) -> str:
    """Why no factor gives `target` tokens over all blocks, which averages there are, and what to change.

    Averages are in tokens, or in percent of so many.
    """

    def say(total: Fraction | int, whole: Callable[[Fraction], object] = lambda exact: f"{float(exact):.6g}") -> str:
        average = Fraction(total) / depth
        return f"{whole(average)}" if percent_of is None else f"{whole(100 * average / percent_of)}%"

    if not plan:
        return (
            f"the recipe drops none of this prompt's {visual} visual tokens, so there is no keep to rescale. Give its "
            "keeps as shares (keep: 1/3), or leave the budget out."
        )
    first, last = min(plan), max(plan)
    nearest = int(target / visual)
    slack = Fraction(depth, 2)  # half a token off is near enough
    if not plan[first]:
        others = [layer for layer in (nearest, nearest + 1) if layer < depth]
        averages = " and ".join(f"{layer} averages {say(layer * visual)}" for layer in others)
        return (
            f"the recipe keeps none of the {visual} visual tokens from layer {first} of {depth} on, so there is no "
            f"keep to rescale and its average is {say(first * visual)}. Ask for that, or change its layer: {averages}."
        )
    if target < first * visual:
        smallest = say(first * visual - slack, ceil)
        return (
            f"the first {first} of {depth} blocks see all {visual} visual tokens, so the smallest average is "
            f"{smallest}. Ask for at least {smallest}, or change the recipe's first layer from {first} to "
            f"{nearest}{' or an earlier one' if nearest else ''}."
        )
    largest = say(last * visual + slack, floor)
    return (
        f"the recipe keeps none of the {visual} visual tokens from layer {last} of {depth} on, so the largest average "
        f"is {largest}. Ask for at most {largest}, change that layer to a later one, or keep some tokens there."
    )
