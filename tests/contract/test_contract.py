"""Everything registered keeps the contract, and what does not is found."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch

from tokenprune import Merger, PlanInput, Scheduler, Scorer, Seen
from tokenprune.builtin.scorers.random import Random
from tokenprune.contract import test_adapter, test_merger, test_scheduler, test_scorer, test_vision_scorer
from tokenprune.contract.cases import Merging
from tokenprune.contract.families import Family, shipped
from tokenprune.errors import LayerError
from tokenprune.families.clip_tower import ClipTower
from tokenprune.families.llava import LlavaAdapter
from tokenprune.parts.attention import Attention
from tokenprune.parts.scorer import VisionScorer
from tokenprune.parts.vision import TokenRows
from tokenprune.registry import registry
from tokenprune.seen.pictures import Pictures, Ranking

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
    {"name": "spread", "keep": 0.3, "strategy": "mean"},
    {"name": "spread", "keep": 7, "strategy": "increasing", "alpha": 3.0},
    {"name": "spread", "remove": 5},
]
NAMED = {settings["name"] for settings in SCHEDULES}


class TestEveryScorer(test_scorer.TestScorer):
    parts = tuple(name for name, entry in registry().entries["scorer"].items() if issubclass(entry.part, Scorer))


class TestEveryVisionScorer(test_vision_scorer.TestVisionScorer):
    parts = tuple(name for name, entry in registry().entries["scorer"].items() if issubclass(entry.part, VisionScorer))


class TestEverySchedule(test_scheduler.TestScheduler):
    """As the recipes use them; any schedule that has no settings above must do with its defaults, or with recipes."""

    parts = ("fixed", "ecl", "pyramid", *sorted(registry().entries["scheduler"].keys() - NAMED), *SCHEDULES)


class TestEveryMerger(test_merger.TestMerger):
    parts = tuple(registry().entries["merger"])


class TestEveryAdapter(test_adapter.TestAdapter):
    parts = tuple(registry().entries["adapter"])


# -- what breaks it is found -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faulty(Scorer):
    """Right scores, spoiled in one way."""

    how: str = "fine"
    equivariant = True

    def score(self, seen: Seen) -> Any:
        return SPOILED[self.how](seen, seen.hidden.float().norm(dim=-1))


@dataclass(unsafe_hash=True)
class Loose(Scorer):
    """Its settings can change."""

    def score(self, seen: Seen) -> torch.Tensor:
        return seen.hidden.float().norm(dim=-1)


@dataclass(frozen=True)
class Unstable(Faulty):
    """Two with the same settings are not the same."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def spoils(name: str) -> Callable[[Seen, torch.Tensor], torch.Tensor]:
    """Changes what it is shown where torch does not notice."""

    def score(seen: Seen, right: torch.Tensor) -> torch.Tensor:
        getattr(seen, name).data.mul_(2)
        return right

    return score


def reseeds(seen: Seen, right: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return right + torch.rand(len(right))


SPOILED: dict[str, Callable[[Seen, torch.Tensor], Any]] = {
    "fine": lambda seen, right: right,
    "too long": lambda seen, right: torch.cat([right, right[:1]]),
    "two columns": lambda seen, right: torch.stack([right, right], dim=1),
    "a list": lambda seen, right: right.tolist(),
    "complex": lambda seen, right: right.to(torch.complex64),
    "NaN": lambda seen, right: right.index_fill(0, torch.tensor([0]), float("nan")),
    "infinite": lambda seen, right: right.log() / 0,
    "drawn anew": lambda seen, right: right + torch.rand(len(right)),
    "reseeds": reseeds,
    "changes states": spoils("states"),
    "changes ids": spoils("ids"),
    "changes columns": spoils("columns"),
    "by its place in the list": lambda seen, right: right + torch.arange(len(right)),
    "needs float32": lambda seen, right: right if seen.states.dtype == torch.float32 else 1 // 0,
    "needs two tokens": lambda seen, right: right / (len(right) - 1),
    "needs tokens that differ": lambda seen, right: (right - right.min()) / (right.max() - right.min()),
    "needs one picture": lambda seen, right: right if len(seen.ids) < 29 else 1 // 0,
}
FINDS = {
    "too long": "one_finite_number",
    "two columns": "one_finite_number",
    "a list": "one_finite_number",
    "complex": "one_finite_number",
    "NaN": "one_finite_number",
    "infinite": "one_finite_number",
    "drawn anew": "same_twice",
    "reseeds": "leaves_what",
    "changes states": "leaves_what",
    "changes ids": "leaves_what",
    "changes columns": "leaves_what",
    "by its place in the list": "order_of_the_tokens",
    "needs float32": "bfloat16",
    "needs two tokens": "one_token",
    "needs tokens that differ": "tokens_that_are_alike",
    "needs one picture": "model_answers",
}
LLAVA = shipped()[0]


def run(contract: type, part: Any, family: Family | None = LLAVA) -> set[str]:
    """The contract's tests that fail for a part."""
    failed = set()
    for name, test in vars(contract).items():
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        ways: Any = product(*([(mark.args[0], value) for value in mark.args[1]] for mark in marks))
        for way in ways if name.startswith("test_") else ():
            wanted = inspect.signature(test).parameters
            given = {name: value for name, value in {"family": family}.items() if name in wanted}
            try:
                test(contract(), part, **given, **dict(way))
            except pytest.skip.Exception:
                continue
            except (Exception, pytest.fail.Exception):
                failed.add(name)
    return failed


def test_a_scorer_that_is_fine_passes() -> None:
    assert run(test_scorer.TestScorer, Faulty()) == set()


@pytest.mark.parametrize("fault", FINDS)
def test_a_faulty_scorer_is_found(fault: str) -> None:
    failed = run(test_scorer.TestScorer, Faulty(fault))
    assert any(FINDS[fault] in name for name in failed), failed
    assert "test_its_settings_are_a_value" not in failed


@dataclass(frozen=True)
class FaultyInTower(VisionScorer):
    """Keeps the tokens with the longest keys, and does one thing wrong."""

    fault: str = ""

    def rank(self, pictures: Pictures) -> Ranking:
        scores = pictures.keys.float().norm(dim=-1)
        first = torch.zeros_like(pictures.tokens)
        if self.fault == "shape":
            return Ranking(scores[:, 1:])
        if self.fault == "NaN in bfloat16" and pictures.hidden.dtype == torch.bfloat16:
            return Ranking(scores * torch.nan)
        if self.fault == "merges into what is dropped":
            return Ranking(pictures.tokens.float() + scores * 0, first)
        if self.fault == "needs two tokens":
            return Ranking(scores - scores[:, 1:2])
        if self.fault == "needs tokens that differ":
            return Ranking((scores - scores.mean()) / (scores.amax() - scores.amin()))
        if self.fault == "draws":
            return Ranking(scores + torch.rand(()))
        if self.fault == "complex":
            return Ranking(scores.to(torch.complex64))
        if self.fault == "another device":
            return Ranking(scores.to("meta"))
        if self.fault == "merges into real numbers":
            return Ranking(scores, first.float())
        if self.fault == "merges into what is not there":
            return Ranking(scores, first - 1)
        if self.fault.startswith("in place: "):
            getattr(pictures, self.fault.removeprefix("in place: ")).mul_(2)
        if self.fault == "looks at other pictures":
            return Ranking(scores - scores.mean(0))
        return Ranking(scores) if self.fault != "no ranking" else scores  # type: ignore[return-value]


IN_TOWER = {
    "shape": "ranks_every_token",
    "no ranking": "ranks_every_token",
    "complex": "ranks_every_token",
    "another device": "ranks_every_token",
    "NaN in bfloat16": "ranks_every_token",
    "merges into real numbers": "ranks_every_token",
    "merges into what is not there": "ranks_every_token",
    "merges into what is dropped": "ranks_every_token",
    "needs two tokens": "ranks_every_token",
    "needs tokens that differ": "ranks_every_token",
    "draws": "same_twice",
    **{f"in place: {name}": "same_twice" for name in ("keys", "hidden", "sizes", "tokens")},
    "looks at other pictures": "do_not_see_each_other",
}


def test_a_vision_scorer_that_is_fine_passes() -> None:
    assert run(test_vision_scorer.TestVisionScorer, FaultyInTower()) == set()


@pytest.mark.parametrize("fault", IN_TOWER)
def test_a_faulty_vision_scorer_is_found(fault: str) -> None:
    failed = run(test_vision_scorer.TestVisionScorer, FaultyInTower(fault))
    assert any(IN_TOWER[fault] in name for name in failed), failed
    assert "test_its_settings_are_a_value" not in failed


def test_settings_that_are_no_value_are_found() -> None:
    for scorer in (Unstable(), Loose()):
        assert "test_its_settings_are_a_value" in run(test_scorer.TestScorer, scorer)


def test_undeclared_equivariance_is_not_asked_for() -> None:
    @dataclass(frozen=True)
    class Listed(Faulty):
        equivariant = False

    assert run(test_scorer.TestScorer, Listed("by its place in the list")) == set()


@dataclass(frozen=True)
class Plans(Scheduler):
    how: str

    def plan(self, shape: PlanInput) -> Any:
        return PLANS[self.how](shape)


def half(shape: PlanInput) -> dict[int, int]:
    return {shape.depth // 2: shape.visual // 2} if shape.visual else {}


def late(shape: PlanInput) -> dict[int, int]:
    if shape.visual > 3:
        raise LayerError("no such layer")
    return {}


PLANS: dict[str, Callable[[PlanInput], Any]] = {
    "fine": half,
    "keeps all": lambda shape: {shape.depth // 2: shape.visual},
    "grows": lambda shape: {0: 1, shape.depth - 1: 2} if shape.visual > 2 else {},
    "beyond the depth": lambda shape: {shape.depth: 0} if shape.visual else {},
    "descending layers": lambda shape: dict(reversed({0: 2, shape.depth - 1: 1}.items())) if shape.visual > 2 else {},
    "shares": lambda shape: {0: 0.5} if shape.visual else {},
    "a list": lambda shape: [0, 1],
    "drawn": lambda shape: {0: random.randrange(shape.visual)} if shape.visual else {},
    "raises": lambda shape: {0: 1 // shape.visual} if shape.visual != 1 else {},
    "drops nothing": lambda shape: {},
    "undeclared collapse layer": lambda shape: {shape.facts.get("ecl", 0): 0} if shape.visual else {},
    "a layer that some prompts miss": late,
}


def test_a_schedule_that_is_fine_passes() -> None:
    assert run(test_scheduler.TestScheduler, Plans("fine")) == set()


@pytest.mark.parametrize("fault", [how for how in PLANS if how != "fine"])
def test_a_faulty_schedule_is_found(fault: str) -> None:
    expected = {
        "drawn": "test_it_is_pure",
        "drops nothing": "test_it_drops_something",
        "undeclared collapse layer": "test_it_says_what_facts_it_needs",
        "a layer that some prompts miss": "test_a_missing_layer_is_missing_for_every_prompt",
    }
    assert expected.get(fault, "test_plans_go_down") in run(test_scheduler.TestScheduler, Plans(fault))


@dataclass(frozen=True)
class Folding(Merger):
    """A merger of any function."""

    how: Callable[..., Any]

    def merge(self, hidden: torch.Tensor, kept: torch.Tensor, seen: Seen) -> Any:
        return self.how(hidden, kept, seen)


def folds(hidden: torch.Tensor, kept: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Adds the mean of the dropped tokens to each kept one."""
    gone = torch.ones(len(hidden), dtype=torch.bool).index_fill(0, kept, False)
    return hidden.index_add(0, kept, hidden[gone].mean(0).expand(len(kept), -1)) if gone.any() else hidden


def shifts(hidden: torch.Tensor, kept: torch.Tensor, seen: Seen) -> torch.Tensor:
    hidden.data.add_(1)
    return hidden


MERGERS: dict[str, tuple[Any, str]] = {
    "kept rows only": (lambda hidden, kept, seen: hidden[kept], "as_many_finite_rows"),
    "double precision": (lambda hidden, kept, seen: hidden.double(), "as_many_finite_rows"),
    "NaN without any kept": (lambda hidden, kept, seen: hidden + hidden[kept].mean() * 0, "as_many_finite_rows"),
    "drawn anew": (lambda hidden, kept, seen: hidden + torch.rand(len(hidden), 1), "same_twice"),
    "in place": (shifts, "leaves_what"),
    "changes kept rows": (lambda hidden, kept, seen: hidden * 2, "nothing_dropped"),
}


@pytest.mark.parametrize("how", ["fine", *MERGERS])
def test_a_faulty_merger_is_found(how: str) -> None:
    merge, finds = MERGERS.get(how, (folds, ""))
    failed = run(test_merger.TestMerger, Merging("mine", Folding(merge), Random()))
    assert any(finds in name for name in failed) if finds else failed == set()


def test_a_merger_may_declare_that_it_mixes() -> None:
    def doubles(hidden: torch.Tensor, kept: torch.Tensor, seen: Seen) -> torch.Tensor:
        return hidden * 2

    @dataclass(frozen=True)
    class Doubles(Folding):
        mixes = True

    assert run(test_merger.TestMerger, Merging("mine", Doubles(doubles), Random())) == set()


ADAPTERS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "keys for queries": (
        "attention",
        lambda self, block: replace(
            Attention.of(block),
            modules={
                "queries": block.self_attn.q_proj, "keys": block.self_attn.v_proj, "values": block.self_attn.k_proj
            },
        ),
        "attention_is_the_models_own",
    ),
    "no norm before": (
        "attention", lambda self, block: replace(Attention.of(block), norm=lambda hidden: hidden), "projections_are"
    ),
    "no rotation": (
        "attention",
        lambda self, block: replace(Attention.of(block), rotation=lambda queries, keys, cos, sin: (queries, keys)),
        "attention_is_the_models_own",
    ),
    "no scaling": (
        "attention", lambda self, block: replace(Attention.of(block), scaling=1.0), "attention_is_the_models_own"
    ),
    "adds something": (
        "additions", lambda self, kwargs: (kwargs, {1: torch.ones(1, 28, 64)}), "additions_are"
    ),
    "additions of no block": ("additions", lambda self, kwargs: (kwargs, {6: torch.ones(1, 28, 64)}), "additions_are"),
    "additions of another width": (
        "additions", lambda self, kwargs: (kwargs, {1: torch.zeros(28, 64)}), "additions_are"
    ),
    "no final norm": ("norm", lambda self, decoder, hidden: hidden, "norm_is"),
    "blocks reversed": ("blocks", lambda self, decoder: list(decoder.layers)[::-1], "blocks_are_all"),
    "a block too few": ("blocks", lambda self, decoder: list(decoder.layers)[:-1], "blocks_are_all"),
    "text is visual": ("visual", lambda self, config, ids: ids > 0, "visual_columns"),
    "other positions": (
        "rotary",
        lambda self, decoder, hidden, positions: decoder.rotary_emb(hidden, position_ids=positions + 1),
        "rotary_tables",
    ),
    "no boxes": ("boxes", lambda self, given: {given.config.image_token_id: []}, "boxes_are"),
    "refuses": ("refuse", lambda self, config: "no", "supports_its_model"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ADAPTERS)
def test_a_faulty_adapter_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, answer, finds = ADAPTERS[fault]
    monkeypatch.setattr(LlavaAdapter, method, answer)
    assert any(finds in name for name in run(test_adapter.TestAdapter, LlavaAdapter()))


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("token_rows", lambda self, *given: TokenRows((given[-1].shape[1],) * len(given[-1]))),  # CLS is a token
        ("features", lambda self, config, depth: 0),  # the projector gets another block's rows
        ("projector", lambda self, base: base.vision_tower.post_layernorm),
    ],
    ids=["token_rows", "features", "projector"],
)
def test_a_faulty_tower_adapter_is_found(
    method: str, answer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipTower, method, answer)
    assert "test_passes_inside_the_tower_drop_what_they_say" in run(test_adapter.TestAdapter, LlavaAdapter())
