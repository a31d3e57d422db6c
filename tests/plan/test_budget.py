"""One budget for all recipes: exact arithmetic on any plan, then the engine and its report."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import pytest
import torch
from families import DEPTH, FAMILIES, ONE, RAGGED, inputs, model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import RECIPES, check_oracle

import tokenprune
from tokenprune.amounts import checked, read, resolve_budget
from tokenprune.errors import BudgetError
from tokenprune.plan.rescale import rescale
from tokenprune.plan.stages import plan_stages
from tokenprune.recipe import load
from tokenprune.registry import registry

EXACT = settings(deadline=None, max_examples=300, derandomize=True, database=None)
PYRAMID = {8: 288, 16: 144, 24: 72}


def per_block(plan: dict[int, int], depth: int, visual: int) -> list[int]:
    counts, left = [], visual
    for block in range(depth):
        left = plan.get(block, left)
        counts.append(left)
    return counts


def mean(plan: dict[int, int], depth: int, visual: int) -> Fraction:
    return Fraction(sum(per_block(plan, depth, visual)), depth)


@st.composite
def plans(draw: Any) -> tuple[dict[int, int], int, int]:
    """A plan, its depth and its number of visual tokens."""
    depth, visual = draw(st.integers(1, 33)), draw(st.integers(1, 600))
    layers = draw(st.sets(st.integers(0, depth - 1), max_size=min(6, visual)))
    kept = draw(st.sets(st.integers(0, visual - 1), min_size=len(layers), max_size=len(layers)))
    return dict(zip(sorted(layers), sorted(kept, reverse=True), strict=True)), depth, visual


budgets = st.integers(0, 620) | st.integers(0, 60).map(lambda n: f"{n}/60") | st.floats(0, 1)


def tokens(budget: Any, visual: int) -> Fraction:
    share = Fraction(budget) if isinstance(budget, str) else Fraction(str(budget))
    return min(Fraction(budget) if isinstance(budget, int) else share * visual, Fraction(visual))


# -- any plan --------------------------------------------------------------------------------------------------------


@EXACT
@given(case=plans(), budget=budgets)
def test_the_average_is_within_half_a_token_or_no_factor_gives_it(case: Any, budget: Any) -> None:
    plan, depth, visual = case
    target = tokens(budget, visual)
    try:
        scaled = rescale(plan, depth, visual, budget)
    except BudgetError:
        smallest = Fraction(min(plan, default=depth) * visual, depth)
        largest = visual if all(plan.values()) and plan else Fraction(max(plan, default=depth) * visual, depth)
        assert target < smallest - Fraction(1, 2) or target > largest + Fraction(1, 2)
    else:
        assert abs(mean(scaled, depth, visual) - target) <= Fraction(1, 2)


@EXACT
@given(case=plans(), budget=budgets)
def test_a_rescaled_plan_goes_down_and_once_is_enough(case: Any, budget: Any) -> None:
    plan, depth, visual = case
    try:
        scaled = rescale(plan, depth, visual, budget)
    except BudgetError:
        assume(False)
    assert scaled.keys() <= plan.keys()
    assert list(scaled) == sorted(scaled)
    assert [visual, *scaled.values()] == sorted({visual, *scaled.values()}, reverse=True)
    assert rescale(scaled, depth, visual, budget) == scaled or not scaled


@EXACT
@given(case=plans())
def test_the_budget_that_a_plan_has_changes_nothing(case: Any) -> None:
    plan, depth, visual = case
    now = mean(plan, depth, visual) / visual
    assert rescale(plan, depth, visual, f"{now.numerator}/{now.denominator}") == plan


@EXACT
@given(case=plans(), budget=budgets)
def test_one_factor_within_one_token_per_stage(case: Any, budget: Any) -> None:
    """Some factor f is within a token of every stage's `min(f * kept, n)`; what kept none still does."""
    plan, depth, visual = case
    try:
        scaled = rescale(plan, depth, visual, budget)
    except BudgetError:
        assume(False)
    assume(scaled)
    counts = per_block(scaled, depth, visual)
    low, high = Fraction(0), math.inf
    for layer, kept in plan.items():
        if not kept:
            assert counts[layer] == 0
            continue
        low = max(low, Fraction(counts[layer] - 1, kept))
        high = min(high, math.inf if counts[layer] == visual else Fraction(counts[layer] + 1, kept))
    assert low <= high


@EXACT
@given(visual=st.integers(2, 600), depth=st.integers(1, 33), data=st.data(), percent=st.integers(1, 99))
def test_a_single_stage_keeps_the_nearest_whole_number(visual: int, depth: int, data: Any, percent: int) -> None:
    """From a plan far away: no whole keep is nearer to the budget."""
    layer, share = data.draw(st.integers(0, depth - 1)), percent / 100
    target = tokens(share, visual)
    assume(layer * visual <= target * depth)
    start = {layer: visual - 1} if share < 0.5 else {layer: 1}
    assume(abs(mean(start, depth, visual) - target) > Fraction(1, 2))
    scaled = rescale(start, depth, visual, share)
    best = min(abs(mean({layer: kept}, depth, visual) - target) for kept in range(visual + 1))
    assert abs(mean(scaled, depth, visual) - target) == best


# -- published plans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "budget", "scaled"),
    [
        ({2: 192}, "1/3", {2: 166}),  # the literature's 192 on average
        ({2: 192}, 192, {2: 166}),
        ({2: 192}, 1 / 3, {2: 166}),
        ({2: 166}, 192, {2: 166}),
        (PYRAMID, 270, PYRAMID),
        (PYRAMID, 192, {8: 110, 16: 55, 24: 27}),
        (PYRAMID, 144, {8: 0}),
        (PYRAMID, 500, {16: 566, 24: 282}),  # the first stage would keep 1131 of 576: it drops nothing any more
        ({0: 284, 20: 38}, 192, {0: 284, 20: 38}),
        ({0: 284, 20: 38}, 64, {0: 95, 20: 12}),
        ({15: 0}, 270, {15: 0}),
        ({0: 192}, 0, {0: 0}),
        ({2: 192}, 1.0, {}),
        ({15: 0}, 576, {}),
        ({}, 1000, {}),
    ],
)
def test_published_plans_on_576_tokens_and_32_layers(plan: Any, budget: Any, scaled: Any) -> None:
    assert rescale(plan, 32, 576, budget) == scaled
    assert abs(mean(scaled, 32, 576) - tokens(budget, 576)) <= Fraction(1, 2)


UNREACHABLE = {
    "pyramid": (
        PYRAMID,
        64,
        "budget 64 cannot be reached: the first 8 of 32 blocks see all 576 visual tokens, so the smallest average is "
        "144. Ask for at least 144, or change the recipe's first layer from 8 to 3 or an earlier one.",
    ),
    "share": (
        {2: 9},
        0.01,
        "smallest average is 36. Ask for at least 36, or change the recipe's first layer from 2 to 0.",
    ),
    "withdrawal": (
        {15: 0},
        "1/3",
        "budget 1/3 cannot be reached: the recipe keeps none of the 576 visual tokens from layer 15 of 32 on, so there "
        "is no keep to rescale and its average is 270. Ask for that, or change its layer: 10 averages 180 and 11 "
        "averages 198.",
    ),
    "late withdrawal": (
        {2: 100, 20: 0},
        500,
        "budget 500 cannot be reached: the recipe keeps none of the 576 visual tokens from layer 20 of 32 on, so the "
        "largest average is 360. Ask for at most 360, change that layer to a later one, or keep some tokens there.",
    ),
    "in percent": (
        PYRAMID,
        "20%",
        "budget 20% cannot be reached: the first 8 of 32 blocks see all 576 visual tokens, so the smallest average is "
        "25%. Ask for at least 25%, or change the recipe's first layer from 8 to 6 or an earlier one.",
    ),
    "withdrawal in percent": (
        {15: 0},
        "33%",
        "its average is 46.875%. Ask for that, or change its layer: 10 averages 31.25% and 11 averages 34.375%.",
    ),
    "late withdrawal in percent": ({2: 100, 20: 0}, "80%", "the largest average is 62%. Ask for at most 62%, change"),
    "nothing dropped": (
        {},
        192,
        "budget 192 cannot be reached: the recipe drops none of this prompt's 576 visual tokens, so there is no keep "
        "to rescale. Give its keeps as shares (keep: 1/3), or leave the budget out.",
    ),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_unreachable_budgets_say_what_is_reachable_and_what_to_change(case: str) -> None:
    plan, budget, message = UNREACHABLE[case]
    with pytest.raises(BudgetError, match=re.escape(message)):
        rescale(plan, 32, 576, budget)


@pytest.mark.parametrize(("visual", "of"), [(576, None), (100, None), (300, 576)])
@pytest.mark.parametrize(("plan", "asked"), [({8: 9}, "1%"), ({7: 3, 9: 1}, "1%"), ({2: 9, 20: 0}, "most")])
def test_the_percents_that_errors_offer_are_reachable(plan: Any, asked: str, visual: int, of: int | None) -> None:
    asked = {"most": "65%" if of is None else "35%"}.get(
        asked, asked
    )  # 20 of 32 layers hold at most 5/8 of what is left
    with pytest.raises(BudgetError) as caught:
        rescale(plan, 32, visual, asked, of)
    (offered,) = re.findall(r"Ask for at (?:least|most) (\d+%)", str(caught.value))
    assert rescale(plan, 32, visual, offered, of)


def test_a_percent_is_a_share() -> None:
    assert rescale({2: 72}, 8, 144, "30%") == rescale({2: 72}, 8, 144, "30/100") != {}
    assert read("33.5%") == "33.5%"
    assert resolve_budget("12.5%", 576) == resolve_budget("1/8", 576) == 72
    for wrong in ("101%", "-1%", "%", "1%%"):
        with pytest.raises(BudgetError, match="a budget is"):
            read(wrong)


@EXACT
@given(case=plans(), bound=st.sampled_from(["smallest", "largest"]))
def test_the_bound_it_names_works_and_one_token_beyond_does_not(case: Any, bound: str) -> None:
    plan, depth, visual = case
    budget, step = (0, -1) if bound == "smallest" else (visual - 1, 1)
    try:
        rescale(plan, depth, visual, budget)
        assume(False)
    except BudgetError as error:
        found = re.search(rf"{bound} average is (\d+)", str(error))
        assume(found is not None)
    named = int(found[1])  # type: ignore[index]
    rescale(plan, depth, visual, named)
    if 0 <= named + step < visual:
        with pytest.raises(BudgetError):
            rescale(plan, depth, visual, named + step)


# -- budgets as given ------------------------------------------------------------------------------------------------

BAD: list[Any] = [
    -1,
    -0.1,
    1.1,
    192.0,
    math.nan,
    math.inf,
    "half",
    "192",
    "3/2",
    "-1/3",
    "1/0",
    "",
    True,
    [3],
    {"keep": 3},
]


@pytest.mark.parametrize("budget", BAD)
def test_a_budget_that_means_nothing_is_refused_at_once(budget: Any) -> None:
    """Before any hook is registered."""
    lm = model("llava")
    expected = "a budget is a number of visual tokens such as 192, or a share of them from 0 to 1 such as 0.25 or '1/3'"
    for start in (tokenprune.prune, tokenprune.attach):
        with pytest.raises(BudgetError, match=re.escape(f"{expected}, got {budget!r}")):
            start(lm, "fastv", budget=budget)
    assert not lm.model._forward_pre_hooks


@pytest.mark.parametrize(("text", "budget"), [("192", 192), ("0.25", 0.25), ("1/3", "1/3"), ("1", 1), ("1.0", 1.0)])
def test_budgets_on_the_command_line(text: str, budget: Any) -> None:
    assert read(text) == checked(budget)
    assert type(read(text)) is type(budget)


@pytest.mark.parametrize("text", ["-3", "1.5", "nan", "inf", "third", "", "4/3", "1/0"])
def test_bad_budgets_on_the_command_line(text: str) -> None:
    with pytest.raises(BudgetError, match="a budget is a number of visual tokens"):
        read(text)


# -- recipes ---------------------------------------------------------------------------------------------------------


OURS = [name for name, entry in registry().entries["recipe"].items() if entry.distribution == "tokenprune-mllm"]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("budget", [288, "1/3", 0.4])
def test_every_recipe_meets_one_budget(name: str, budget: Any) -> None:
    """On LLaVA-1.5's shape, in a batch of unequal prompts as alone."""
    recipe, counts = load(name), [576, 0, 1152, 577]
    stages = plan_stages(recipe, 32, counts, {"ecl": 2}, budget)
    for row, visual in enumerate(counts):
        plan = {layer: stage.kept[row] for layer, stage in stages.items()}
        assert abs(mean(plan, 32, visual) - tokens(budget, visual)) <= Fraction(1, 2)
        alone = plan_stages(recipe, 32, [visual], {"ecl": 2}, budget)
        assert per_block({layer: stage.kept[0] for layer, stage in alone.items()}, 32, visual) == per_block(
            plan, 32, visual
        )
    assert recipe == load(name)


def test_all_passes_scale_by_the_same_factor() -> None:
    stages = plan_stages(load("divprune-random"), 32, [576], {}, 96)
    assert {layer: (type(stage.step.scorer).__name__, stage.kept) for layer, stage in stages.items()} == {
        0: ("Diversity", (142,)),
        20: ("Random", (19,)),
    }


# -- the engine ------------------------------------------------------------------------------------------------------

CASES = [
    (RECIPES["mixture"], "1/3"),  # three passes
    (RECIPES["mixture"], 9),
    (RECIPES["pyramid"], 0.5),
    (RECIPES["entropy"], 0.9),  # upwards
]


@pytest.mark.parametrize(("passes", "budget"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_equals_masking_and_every_prompt_meets_its_budget(family: str, passes: Any, budget: Any) -> None:
    pruning = check_oracle(family, "sdpa", RAGGED, {"prune": passes}, budget=budget)
    report, state = pruning.report(), pruning.state
    assert state is not None
    assert len(set(state.counts)) == 3
    assert len(report.average) == len(RAGGED)
    for row, (average, visual) in enumerate(zip(report.average, state.counts, strict=True)):
        plan = {stage.layer: stage.kept[row] for stage in report.stages}
        assert average == pytest.approx(float(mean(plan, DEPTH, visual)))
        assert abs(average - tokens(budget, visual)) <= 0.5
    assert f"average over the layers {report.average[0]:.1f}, " in str(report)


def test_a_budget_for_good() -> None:
    lm = model("llava")
    handle = tokenprune.attach(lm, "fastv", "prune.0.schedule.layer=1", budget=0.5)
    try:
        with torch.no_grad():
            lm(**inputs("llava", ONE))
        assert handle.report().average == pytest.approx([8], abs=0.5)
    finally:
        handle.remove()


def test_an_unreachable_budget_stops_the_prefill_and_leaves_the_model_clean() -> None:
    lm, given = model("llava"), inputs("llava", ONE)
    with torch.no_grad():
        before = lm(**given).logits
        with (
            tokenprune.prune(lm, "fastv", budget=3),
            pytest.raises(BudgetError, match="first 2 of 6 blocks see all 16"),
        ):
            lm(**given)
        assert torch.equal(lm(**given).logits, before)
