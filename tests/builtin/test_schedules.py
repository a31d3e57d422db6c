"""Budgets, layers and plans: pure numbers, against the published ones and against exact arithmetic."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.amounts import kept_for_average, resolve_budget, resolve_layer
from tokenprune.builtin.schedules import Ecl, Fixed, Pyramid, Spread, Table
from tokenprune.errors import BudgetError, LayerError
from tokenprune.parts.scheduler import PlanInput, Scheduler

LLAVA = PlanInput(depth=32, visual=576, facts={"ecl": 2})
THREE = ("8/32", "16/32", "24/32")


def mean(plan: dict[int, int], shape: PlanInput) -> Fraction:
    """Visual tokens per block, block by block."""
    counts, left = [], shape.visual
    for block in range(shape.depth):
        left = plan.get(block, left)
        counts.append(left)
    return Fraction(sum(counts), shape.depth)


# -- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("average", "kept"), [(192, 166), (128, 98), (64, 29), ("1/3", 166), ("2/9", 98)])
def test_average_at_layer_2_of_32_keeps_the_published_counts(average: Any, kept: int) -> None:
    """avg 192 -> 166 and 128 -> 98 as in the paper; 64 -> int(29.87)."""
    assert Fixed(layer=2, average=average).plan(LLAVA) == {2: kept}
    assert Ecl(average=average).plan(LLAVA) == {2: kept}


@pytest.mark.parametrize("layer", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("average", [128, 192, 300, 575])
def test_an_average_is_never_exceeded_and_one_token_more_would(average: int, layer: int) -> None:
    plan = Fixed(layer=layer, average=average).plan(LLAVA)
    assert mean(plan, LLAVA) <= average
    assert mean({layer: plan[layer] + 1}, LLAVA) > average


UNREACHABLE: list[tuple[Any, PlanInput]] = [
    (lambda average: Fixed(layer=5, average=average), PlanInput(32, 576)),
    (lambda average: Fixed(layer="16/32", average=average), PlanInput(28, 100)),
    (lambda average: Fixed(layer=1, average=average), PlanInput(3, 7)),
    (lambda average: Ecl(average=average), PlanInput(32, 577, facts={"ecl": 3})),
    (lambda average: Pyramid(layers=THREE, average=average), PlanInput(32, 576)),
    (lambda average: Pyramid(layers=(1, 2), average=average), PlanInput(3, 100)),
]


@pytest.mark.parametrize(("make", "shape"), UNREACHABLE)
def test_an_unreachable_average_names_the_smallest_reachable_one(make: Any, shape: PlanInput) -> None:
    """The one it names works; one less does not; nothing is kept by it beyond what the depth allows."""
    with pytest.raises(BudgetError, match="average 0 cannot be reached") as caught:
        make(0).plan(shape)
    smallest = int(re.search(r"smallest average is (\d+)", str(caught.value))[1])  # type: ignore[index]
    assert mean(make(smallest).plan(shape), shape) <= smallest
    with pytest.raises(BudgetError, match=f"average {smallest - 1} cannot be reached"):
        make(smallest - 1).plan(shape)


def test_an_unreachable_share_is_told_in_tokens() -> None:
    with pytest.raises(BudgetError, match=r"average 0\.1 cannot be reached: 5 of 32 blocks see all 576"):
        Fixed(layer=5, average=0.1).plan(LLAVA)


def test_an_average_that_every_token_meets_prunes_nothing() -> None:
    assert kept_for_average(576, 2, 32, 576) == kept_for_average(10**6, 2, 32, 576) == 576
    assert Fixed(layer=2, average=1.0).plan(LLAVA) == Pyramid(layers=THREE, average=1.0).plan(LLAVA) == {}


# -- tokens and shares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "visual", "kept"),
    [(192, 576, 192), (0.25, 576, 144), ("1/3", 576, 192), ("284/576", 576, 284), (0.5, 5, 3), (0, 576, 0), (1, 9, 1)],
)
def test_keep_is_tokens_if_an_int_and_a_share_otherwise(keep: Any, visual: int, kept: int) -> None:
    assert Fixed(layer=2, keep=keep).plan(PlanInput(32, visual)) == {2: kept}


@pytest.mark.parametrize("visual", [50, 90, 100, 576, 1000])
def test_shares_round_half_up_as_written(visual: int) -> None:
    """0.29 of 50 is 14.5, so 15: not what its binary neighbour 0.28999... would give."""
    shares = [f"{thousandths / 1000}" for thousandths in range(1001)]
    exact = [math.floor(Fraction(share) * visual + Fraction(1, 2)) for share in shares]
    assert [resolve_budget(float(share), visual) for share in shares] == exact


@pytest.mark.parametrize("make", [lambda keep: Fixed(layer=2, keep=keep), lambda keep: Ecl(keep=keep)])
@pytest.mark.parametrize("keep", [576, 577, 10**6, 1.0, "5/5"])
def test_keeping_everything_is_an_empty_plan(make: Any, keep: Any) -> None:
    assert make(keep).plan(LLAVA) == {}


@pytest.mark.parametrize("keep", [0, 0.0, "0/7"])
def test_keeping_nothing_drops_every_token(keep: Any) -> None:
    assert Fixed(layer=2, keep=keep).plan(LLAVA) == {2: 0}


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "depth", "count"),
    [(0, 32, 0), (31, 32, 31), ("16/32", 28, 14), ("8/32", 28, 7), ("20/32", 28, 18), ("1/4", 6, 2), ("0/3", 6, 0)],
)
def test_layers_are_counts_or_fractions_of_the_depth(layer: Any, depth: int, count: int) -> None:
    """Fractions round to the nearest block, half up: 17.5 -> 18."""
    assert resolve_layer(layer, depth) == count
    assert Fixed(layer=layer, keep=0).plan(PlanInput(depth, 9)) == {count: 0}


@pytest.mark.parametrize("visual", [0, 1, 576])
@pytest.mark.parametrize("schedule", [Fixed(layer=28, keep=3), Pyramid(layers=(1, 99), ratio=0.5), Ecl(average=1)])
def test_layers_beyond_the_depth_are_refused_for_every_prompt(schedule: Scheduler, visual: int) -> None:
    with pytest.raises(LayerError, match="this model has 28 blocks, use 0 to 27"):
        schedule.plan(PlanInput(28, visual, facts={"ecl": 28}))


@pytest.mark.parametrize("layer", [-1, "-1/3", "32/32", "33/32", "1/0", "2", "0.5", "x/y", ""])
def test_layers_that_no_model_has_are_refused_at_once(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"layer|fraction"):
        Fixed(layer=layer, keep=3)
    with pytest.raises(ValueError, match=r"layer|fraction"):
        Pyramid(layers=(layer,), keep=3)


@pytest.mark.parametrize("budget", [-1, -0.1, 1.1, 192.0, "3/2", "-1/3", "192", "half", math.nan, math.inf])
@pytest.mark.parametrize("name", ["keep", "average"])
def test_budgets_that_mean_nothing_are_refused_at_once(name: str, budget: Any) -> None:
    for make in (lambda **b: Fixed(layer=2, **b), Ecl, lambda **b: Pyramid(layers=(2,), **b)):
        with pytest.raises(ValueError, match=r"budget|fraction"):
            make(**{name: budget})


@pytest.mark.parametrize("given", [{}, {"keep": 3, "average": 5}, {"keep": 0, "average": 0}])
def test_exactly_one_budget_must_be_given(given: dict[str, Any]) -> None:
    for make in (lambda **b: Fixed(layer=2, **b), Ecl, lambda **b: Pyramid(layers=(2,), **b)):
        with pytest.raises(ValueError, match="give exactly one of"):
            make(**given)


# -- the entropy collapse layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 31])
def test_ecl_prunes_where_the_shape_says(layer: int) -> None:
    assert Ecl(keep=100).plan(PlanInput(32, 576, facts={"ecl": layer})) == {layer: 100}


def test_an_unknown_ecl_is_an_error_that_says_what_to_do() -> None:
    assert Ecl.needs == ("ecl",)
    assert not Fixed.needs
    with pytest.raises(LayerError, match="tokenprune calibrate"):
        Ecl(keep=3).plan(PlanInput(32, 576))


# -- pyramids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(8, 16, 24), THREE])
def test_pyramid_of_the_paper(layers: Any) -> None:
    """PyramidDrop: 576 / 288 / 144 / 72, a mean of 270."""
    plan = Pyramid(layers=layers, ratio=0.5).plan(LLAVA)
    assert plan == {8: 288, 16: 144, 24: 72}
    assert mean(plan, LLAVA) == 270


def test_pyramid_counts_floor_the_ratio_as_written() -> None:
    """0.1 ** 2 of 100 is 1, and 0.7 ** 2 of 100 is 49, whatever binary floats make of it."""
    assert Pyramid(layers=(1, 2), ratio=0.1).plan(PlanInput(6, 100)) == {1: 10, 2: 1}
    assert Pyramid(layers=(1, 2), ratio=0.7).plan(PlanInput(6, 100)) == {1: 70, 2: 49}


@pytest.mark.parametrize(("keep", "last"), [(72, 72), ("1/8", 72), (0, 0), (575, 575), (1, 1)])
@pytest.mark.parametrize("layers", [(8,), (8, 16), (8, 16, 24)])
def test_pyramid_keep_is_what_the_last_step_leaves(layers: tuple[int, ...], keep: Any, last: int) -> None:
    plan = Pyramid(layers=layers, keep=keep).plan(LLAVA)
    assert plan[max(plan)] == last
    if last == 72 and len(layers) == 3:
        assert plan == {8: 288, 16: 144, 24: 72}


@pytest.mark.parametrize("ratio", [0, 0.0, 1, 1.0])
def test_pyramid_ratio_zero_drops_all_and_one_drops_none(ratio: float) -> None:
    assert Pyramid(layers=THREE, ratio=ratio).plan(LLAVA) == ({} if ratio else {8: 0})


@pytest.mark.parametrize("layers", [(3, 2), (2, 2), ("1/2", 16), ("15/32", "16/32")])
def test_pyramid_layers_must_ascend_on_this_model(layers: Any) -> None:
    """Two fractions may fall on the same block of a shallow model."""
    with pytest.raises(LayerError, match="must ascend"):
        Pyramid(layers=layers, ratio=0.5).plan(PlanInput(32 if 16 in layers else 6, 576))


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": (), "ratio": 0.5},
        {"layers": (1,), "ratio": 1.5},
        {"layers": (1,), "ratio": -0.1},
        {"layers": (1,), "ratio": math.nan},
        {"layers": (1,), "ratio": 0.5, "keep": 3},
        {"layers": (1,)},
    ],
)
def test_pyramids_without_meaning_are_refused_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"layers must name|ratio must lie|give exactly one"):
        Pyramid(**fields)


def root_floor(power: int, value: int, unit: int) -> int:
    """The largest c with c ** power * unit <= value, in integers."""
    low, high = 0, value + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**power * unit <= value else (low, middle)
    return low


def largest_pyramid(layers: tuple[int, ...], shape: PlanInput, average: int) -> int:
    """Tokens over all blocks under the largest ratio that stays within the average, by trying every ratio at which a
    count changes: (k / n) ** (1 / a), whose counts are floor(n * (k / n) ** (b / a)), in integers.
    """
    n, best = shape.visual, -1
    spans = [end - start for start, end in zip(layers, [*layers[1:], shape.depth], strict=True)]
    for a in range(1, len(layers) + 1):
        for k in range(n + 1):
            counts = [root_floor(a, k**b * n**a, n**b) for b in range(1, len(layers) + 1)]
            total = layers[0] * n + sum(span * count for span, count in zip(spans, counts, strict=True))
            if total <= average * shape.depth:
                best = max(best, total)
    return best


@pytest.mark.parametrize(
    ("layers", "shape", "averages"),
    [
        ((8, 16, 24), PlanInput(32, 576), (144, 192, 270, 400, 576)),
        ((2, 4), PlanInput(6, 36), (12, 15, 20, 27, 35)),
        ((0, 3), PlanInput(6, 25), (0, 1, 10, 24)),
        ((1,), PlanInput(6, 16), (3, 9, 16)),
    ],
)
def test_pyramid_average_is_never_exceeded_and_maximal(
    layers: tuple[int, ...], shape: PlanInput, averages: tuple[int, ...]
) -> None:
    for average in averages:
        plan = Pyramid(layers=layers, average=average).plan(shape)
        total = mean(plan, shape) * shape.depth
        assert total <= average * shape.depth
        assert total == largest_pyramid(layers, shape, average)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_keeps_what_it_says() -> None:
    table = Table(layers=("3/32", "7/32", 16), keep=(309, "204/576", 0.2))
    assert table.plan(LLAVA) == {3: 309, 7: 204, 16: 115}
    assert table.plan(PlanInput(32, 250)) == {7: 89, 16: 50}


def test_steps_of_a_table_that_meet_in_a_shallow_model_are_one() -> None:
    """A fraction above zero lets one block run at least, and leaves one."""
    table = Table(layers=("1/32", "2/32", "15/32", "31/32"), keep=(9, 8, 7, 6))
    assert table.plan(PlanInput(6, 10)) == {1: 8, 3: 7, 5: 6}
    assert table.plan(PlanInput(32, 10)) == {1: 9, 2: 8, 15: 7, 31: 6}
    assert Table(layers=("0/32",), keep=(9,)).plan(PlanInput(6, 10)) == {0: 9}


def test_a_table_that_makes_no_sense_is_refused() -> None:
    for layers, keep in (((), ()), ((1, 2), (3,)), ((-1,), (3,)), ((1,), (-3,))):
        with pytest.raises(ValueError, match=r"as many budgets|layer must|a budget"):
            Table(layers=layers, keep=keep)
    with pytest.raises(LayerError, match="must ascend"):
        Table(layers=(3, 2), keep=(9, 8)).plan(PlanInput(6, 10))
    with pytest.raises(LayerError, match="does not exist"):
        Table(layers=(6,), keep=(9,)).plan(PlanInput(6, 10))


# -- spread ----------------------------------------------------------------------------------------------------------

CLIP = PlanInput(24, 576)  # 23 blocks and the projector


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"strategy": "mean"}, [*range(1, 24)]),
        ({"strategy": "skip"}, [*range(1, 24, 2)]),
        ({}, [*range(1, 24, 2)]),
        ({"strategy": "first", "blocks": 5}, [1, 2, 3, 4, 5]),
        ({"strategy": "last", "blocks": 3}, [21, 22, 23]),
        ({"strategy": "first"}, [*range(1, 13)]),
        ({"strategy": "last"}, [*range(12, 24)]),
        ({"strategy": "increasing"}, [*range(1, 24)]),
        ({"strategy": "decreasing"}, [*range(1, 24)]),
    ],
)
@pytest.mark.parametrize("keep", [128, 64, 32, "1/3", 1])
def test_spread_ends_at_its_budget_exactly(settings: dict[str, Any], layers: list[int], keep: Any) -> None:
    plan = Spread(keep=keep, **settings).plan(CLIP)
    assert [*plan] == layers
    assert plan[layers[-1]] == (192 if keep == "1/3" else keep)


def test_spread_rounds_what_is_gone_down() -> None:
    """30 tokens over 4 steps: 7.5, 15, 22.5, 30 are gone."""
    assert Spread(keep=10, strategy="mean").plan(PlanInput(5, 40)) == {1: 33, 2: 25, 3: 18, 4: 10}
    assert Spread(keep=10, strategy="increasing").plan(PlanInput(5, 40)) == {1: 37, 2: 31, 3: 22, 4: 10}
    assert Spread(keep=10, strategy="decreasing").plan(PlanInput(5, 40)) == {1: 28, 2: 19, 3: 13, 4: 10}
    assert Spread(keep=38, strategy="mean").plan(PlanInput(5, 40)) == {2: 39, 4: 38}


@given(visual=st.integers(0, 600), depth=st.integers(2, 40), keep=st.floats(0, 1), alpha=st.floats(0, 100))
@pytest.mark.parametrize("strategy", ["mean", "skip", "first", "last", "increasing", "decreasing"])
def test_spread_steps_differ_by_their_weights_alone(
    strategy: Any, visual: int, depth: int, keep: float, alpha: float
) -> None:
    plan = Spread(keep=keep, strategy=strategy, alpha=alpha).plan(PlanInput(depth, visual))
    last = resolve_budget(keep, visual)
    assert min(plan.values(), default=visual) == last
    steps = [before - after for before, after in pairwise([visual, *plan.values()])]
    assert all(step > 0 for step in steps)
    if strategy in ("mean", "skip", "first", "last"):
        assert not steps or max(steps) - min(steps) <= 1 or len(steps) < depth - 1


def test_spread_removes_r_and_at_most_half() -> None:
    """ToMe's r: 16 of 576 over 23 blocks leave 208; r of 100 of 9 tokens halves them."""
    assert Spread(remove=16, strategy="mean").plan(CLIP)[23] == 576 - 23 * 16
    assert Spread(remove=100, strategy="mean").plan(PlanInput(4, 9)) == {1: 5, 2: 3, 3: 2}
    assert Spread(remove=0).plan(CLIP) == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "give exactly one of keep, remove"),
        ({"keep": 3, "remove": 2}, "give exactly one of keep, remove"),
        ({"remove": -1}, "remove must be >= 0"),
        ({"keep": 3, "blocks": 2}, "blocks is for first and last"),
        ({"keep": 3, "strategy": "first", "blocks": 0}, "1 at least"),
        ({"keep": 3, "alpha": -1.0}, r"alpha must lie in \[0, 100\]"),
        ({"keep": 3, "alpha": float("nan")}, r"alpha must lie in \[0, 100\]"),
        ({"remove": 3, "strategy": "increasing"}, "takes no `remove`"),
    ],
)
def test_spread_refuses_what_makes_no_sense(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Spread(**settings)


def test_spread_needs_room_for_its_steps() -> None:
    with pytest.raises(LayerError, match="spread over 5 blocks: 3 steps are there"):
        Spread(keep=3, strategy="first", blocks=5).plan(PlanInput(4, 9))
    with pytest.raises(LayerError, match="this depth is 1"):
        Spread(keep=3).plan(PlanInput(1, 9))
