"""Faults of scorers, mergers and schedules: the error says whose, and the model works as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from families import RAGGED, answer, inputs, logits, model
from modules import attributes
from notes import passed_as_it_is
from oracle import RECIPES, check_oracle

import tokenprune
from tokenprune import Merger, Scheduler, Scorer
from tokenprune.errors import LayerError, PromptError, ScheduleError, ScorerError, TokenpruneError
from tokenprune.registry import Entry, registry
from tokenprune.seen.prompt import Plain


@dataclass(frozen=True)
class Faulty(Scorer):
    how: str = "good"

    def score(self, seen: Any) -> Any:
        return SCORES[self.how](seen)


def column(seen: Any) -> torch.Tensor:
    return seen.columns.float()


def raises(error: BaseException) -> Callable[..., Any]:
    def score(*_: Any) -> Any:
        raise error

    return score


def changing(tensor: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    def score(seen: Any) -> torch.Tensor:
        tensor(seen).mul_(2)
        return column(seen)

    return score


def nan(seen: Any) -> torch.Tensor:
    score = column(seen)
    score[0] = float("nan")
    return score


def no_text(seen: Any) -> torch.Tensor:
    raise PromptError("the scorer reads the question as text")


SCORES: dict[str, Callable[[Any], Any]] = {
    "good": column,
    "raises": raises(RuntimeError("out of ideas")),
    "asks for states that do not exist": lambda seen: seen.attention([10**6]).mean((0, 1)),
    "asks for a block that is not there": lambda seen: replace(seen, source=Plain()).keys,
    "reads a question that is not text": no_text,
    "nan": nan,
    "too long": lambda seen: torch.zeros(len(seen.visual) + 1),
    "two columns": lambda seen: torch.zeros(len(seen.visual), 2),
    "a list": lambda seen: column(seen).tolist(),
    "nothing": lambda seen: None,
    "complex": lambda seen: column(seen).to(torch.complex64),
    "8-bit floats": lambda seen: column(seen).to(torch.float8_e4m3fn),
    "another device": lambda seen: column(seen).to("meta"),
    "changes states": changing(lambda seen: seen.states),
    "changes projections": changing(lambda seen: seen.source.project("previous", "keys", None)),
    "changes ids": changing(lambda seen: seen.ids),
    "interrupt": raises(KeyboardInterrupt()),
    "out of memory": raises(torch.OutOfMemoryError("no room")),
}
MERGED: dict[str, Callable[..., Any]] = {
    "raises": raises(RuntimeError("out of ideas")),
    "nan": lambda hidden, kept, seen: hidden * float("nan"),
    "kept rows only": lambda hidden, kept, seen: hidden[kept],
    "double precision": lambda hidden, kept, seen: hidden.double(),
    "another device": lambda hidden, kept, seen: hidden.to("meta"),
    "nothing": lambda hidden, kept, seen: None,
    "changes states": lambda hidden, kept, seen: changing(lambda seen: seen.states)(seen),
}
# what happens, and what the message says
SCORER_FAULTS: dict[str, tuple[type[BaseException], str]] = {
    "raises": (ScorerError, "failed with RuntimeError: out of ideas"),
    "nan": (ScorerError, "gave NaN"),
    "too long": (ScorerError, r"must give one number per visual token: expected shape \(32,\), got \(33,\)"),
    "two columns": (ScorerError, r"expected shape \(32,\), got \(32, 2\)"),
    "a list": (ScorerError, "expected a tensor, got list"),
    "nothing": (ScorerError, "expected a tensor, got NoneType"),
    "complex": (ScorerError, "expected real numbers, got torch.complex64"),
    "8-bit floats": (ScorerError, "expected real numbers, got torch.float8_e4m3fn"),
    "another device": (ScorerError, "expected them on cpu, got meta"),
    "changes states": (ScorerError, "changed what it was shown in place"),
    "changes projections": (ScorerError, "changed what it was shown in place"),
    "changes ids": (ScorerError, "changed what it was shown in place"),
    "interrupt": (KeyboardInterrupt, ""),
    "out of memory": (torch.OutOfMemoryError, "no room"),
}
# what the engine itself says inside a part
OURS: dict[str, tuple[type[TokenpruneError], str]] = {
    "asks for states that do not exist": (ScorerError, "query columns [1000000] do not exist: 42 columns are left"),
    "asks for a block that is not there": (ScorerError, "at layer 2 there is no previous block"),
    "reads a question that is not text": (PromptError, "the scorer reads the question as text"),
}
MERGER_FAULTS: dict[str, tuple[type[BaseException], str]] = {
    "raises": (ScorerError, "failed with RuntimeError: out of ideas"),
    "nan": (ScorerError, "gave NaN"),
    "kept rows only": (ScorerError, r"must give as many rows as it got: expected shape \(32, 64\), got \(3, 64\)"),
    "double precision": (ScorerError, "expected torch.float32, got torch.float64"),
    "another device": (ScorerError, "expected them on cpu, got meta"),
    "nothing": (ScorerError, "expected a tensor, got NoneType"),
    "changes states": (ScorerError, "changed what it was shown in place"),
}


def folding(how: str) -> type[Merger]:
    """A merger of its own type for each fault."""

    @dataclass(frozen=True)
    class Folding(Merger):
        def merge(self, hidden: torch.Tensor, kept: torch.Tensor, seen: Any) -> Any:
            return MERGED[how](hidden, kept, seen)

    return Folding


@pytest.fixture
def provided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faulty parts, as a distribution called `stranger` would provide them."""
    entries = {
        "scorer": {"faulty": Faulty},
        "scheduler": {"faulty": Plans},
        "merger": {f"faulty-{how}": folding(how) for how in MERGED},
    }
    for kind, things in entries.items():
        for name, thing in things.items():
            monkeypatch.setitem(registry().entries[kind], name, Entry(kind, name, thing, "stranger"))


def check_fault(recipe: Any, error: type[BaseException], message: str) -> None:
    """The same error every time, no trace on the model, and right answers after it: plain and pruned."""
    lm = model("llava")
    before, hooks = logits(answer("llava", "sdpa", RAGGED)), attributes(lm)
    with tokenprune.prune(lm, recipe) as pruning:
        for _ in range(2):
            with torch.no_grad(), pytest.raises(error, match=message):
                lm(**inputs("llava", RAGGED))
            assert pruning._pruner.live.forward_pass is None or error is KeyboardInterrupt
        text = [(9, (6,))]
        assert torch.isfinite(logits(answer("llava", "sdpa", text))).all()
    assert pruning._pruner.live.forward_pass is None
    assert not pruning._pruner._running
    assert attributes(lm) == hooks
    assert torch.equal(logits(answer("llava", "sdpa", RAGGED)), before)
    check_oracle("llava", "sdpa", RAGGED, {"prune": RECIPES["entropy"]})


STAGES = [{"scorer": "diversity", "schedule": {"name": "fixed", "layer": 0, "keep": 1.0}}]


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize("fault", SCORER_FAULTS)
def test_a_scorer_that(fault: str) -> None:
    """The error names scorer, distribution, layer and prompt."""
    error, message = SCORER_FAULTS[fault]
    who = "scorer 'faulty' of stranger at layer 2, prompt 0, " if error is ScorerError else ""
    schedule = {"name": "fixed", "layer": 2, "keep": 3}
    # states are looked at, so that there is something to change
    recipe = {"prune": [*STAGES, {"scorer": {"name": "faulty", "how": fault}, "schedule": schedule}]}
    check_fault(recipe, error, who + "(.*)" + message)


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize("fault", MERGER_FAULTS)
def test_a_merger_that(fault: str) -> None:
    error, message = MERGER_FAULTS[fault]
    recipe = {
        "prune": [
            {"scorer": "diversity", "schedule": {"name": "fixed", "layer": 2, "keep": 3}, "merge": f"faulty-{fault}"}
        ]
    }
    check_fault(recipe, error, f"merger 'faulty-{fault}' of stranger at layer 2, prompt 0, (.*){message}")


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize("part", ["scorer", "merger"])
@pytest.mark.parametrize("said", OURS)
def test_the_engines_own_errors_pass_as_they_are(said: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, message = OURS[said]
    monkeypatch.setitem(MERGED, "asks", lambda hidden, kept, seen: SCORES[said](seen))
    monkeypatch.setitem(registry().entries["merger"], "asks", Entry("merger", "asks", folding("asks"), "stranger"))
    step: dict[str, Any] = {"scorer": {"name": "faulty", "how": said}}
    if part == "merger":
        step = {"scorer": "diversity", "merge": "asks"}
    recipe = {"prune": [{**step, "schedule": {"name": "fixed", "layer": 2, "keep": 3}}]}
    name = "scorer 'faulty'" if part == "scorer" else "merger 'asks'"
    for _ in range(2):
        with pytest.raises(error) as caught, tokenprune.prune(model("llava"), recipe):
            answer("llava", "sdpa", RAGGED)
        assert str(caught.value).startswith(message)
        assert passed_as_it_is(caught.value, f"{name} of stranger at layer 2, prompt 0")
    check_oracle("llava", "sdpa", RAGGED, {"prune": RECIPES["entropy"]})


def test_what_nobody_registered_is_named_by_its_module() -> None:
    recipe = {"prune": [{"scorer": Faulty("raises"), "schedule": {"name": "fixed", "layer": 2, "keep": 3}}]}
    check_fault(recipe, ScorerError, "scorer 'Faulty' of module test_faults at layer 2, prompt 0, failed")


def test_the_cause_of_a_fault_is_kept() -> None:
    recipe = {"prune": [{"scorer": Faulty("raises"), "schedule": {"name": "fixed", "layer": 2, "keep": 3}}]}
    with pytest.raises(ScorerError) as caught, tokenprune.prune(model("llava"), recipe):
        answer("llava", "sdpa", RAGGED)
    assert isinstance(caught.value.__cause__, RuntimeError)


@dataclass(frozen=True)
class Ranked(Scorer):
    """The same order in any type of numbers."""

    dtype: torch.dtype

    def score(self, seen: Any) -> torch.Tensor:
        return (seen.columns % 7 > 3).to(self.dtype)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64],
    ids=str,
)
def test_scores_may_be_any_real_numbers(dtype: torch.dtype) -> None:
    schedule = {"name": "fixed", "layer": 2, "keep": 5}
    recipes = [{"prune": [{"scorer": Ranked(kind), "schedule": schedule}]} for kind in (torch.float32, dtype)]
    found = []
    for recipe in recipes:
        with tokenprune.prune(model("llava"), recipe):
            found.append(logits(answer("llava", "sdpa", RAGGED)))
    assert torch.equal(*found)
    check_oracle("llava", "sdpa", RAGGED, recipes[1])


@pytest.mark.parametrize("fault", ["changes states", "changes projections", "changes ids"])
def test_in_inference_mode_scorers_change_copies(fault: str) -> None:
    """There torch counts no versions, so a change cannot be seen: it must do nothing."""
    found = []
    for how in ("good", fault):
        recipe = {"prune": [{"scorer": Faulty(how), "schedule": {"name": "fixed", "layer": 2, "keep": 3}}]}
        with torch.inference_mode(), tokenprune.prune(model("llava"), recipe):
            found.append(answer("llava", "sdpa", RAGGED))
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.equal(logits(found[0]), logits(found[1]))


@dataclass(frozen=True)
class Plans(Scheduler):
    how: str = "good"

    def plan(self, given: Any) -> Any:
        return PLANS[self.how](given)


PLANS: dict[str, Callable[[Any], Any]] = {
    "good": lambda given: {2: min(3, given.visual)},
    "numpy": lambda given: {np.int64(2): np.int64(min(3, given.visual))},
    "raises": raises(ZeroDivisionError("by zero")),
    "raises for a layer": raises(LayerError("no such layer")),
    "more than there are": lambda given: {2: given.visual + 1},
    "negative": lambda given: {2: -1},
    "a share": lambda given: {2: 0.5},
    "text": lambda given: {"2": 3},
    "beyond the depth": lambda given: {given.depth: 0},
    "before the first": lambda given: {-1: 0},
    "grows": lambda given: {1: 0, 2: 1},
    "a list": lambda given: [2, 3],
    "nothing": lambda given: None,
    "late": lambda given: {2: 1} if given.visual == 1 else {2: -1},
}
JUNK = [how for how in PLANS if how not in ("good", "numpy", "raises", "raises for a layer", "late")]


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize("fault", ["raises", "raises for a layer", *JUNK])
def test_a_schedule_that(fault: str) -> None:
    """It is refused on entering the block, before the model runs."""
    lm, hooks = model("llava"), attributes(model("llava"))
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "faulty", "how": fault}}]}
    who = "scheduler 'faulty' of stranger, planning 1 visual tokens, "
    error: type[TokenpruneError] = ScheduleError
    message = who + (r"failed with ZeroDivisionError: by zero" if fault == "raises" else r"must give \{layer: .* got ")
    if fault == "raises for a layer":
        error, message = LayerError, "no such layer"
    with pytest.raises(error, match=message):
        tokenprune.attach(lm, recipe)
    assert attributes(lm) == hooks
    check_oracle("llava", "sdpa", RAGGED, {"prune": RECIPES["entropy"]})


@pytest.mark.usefixtures("provided")
def test_a_schedule_that_fails_for_some_prompts() -> None:
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "faulty", "how": "late"}}]}
    check_fault(recipe, ScheduleError, r"planning 32 visual tokens, .* counts that go down from 32, got \{2: -1\}")


@pytest.mark.parametrize("how", ["good", "numpy"])
def test_a_schedule_of_whole_numbers_of_any_kind(how: str) -> None:
    check_oracle("llava", "sdpa", RAGGED, {"prune": [{"scorer": "random", "schedule": Plans(how)}]})


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_inside_the_block_removes_the_hooks(error: type[BaseException]) -> None:
    lm = model("llava")
    answer("llava", "sdpa", RAGGED)
    before = attributes(lm)
    with pytest.raises(error), tokenprune.prune(lm, {"prune": RECIPES["mixture"]}):
        _raise_after_an_answer(error)
    assert attributes(lm) == before


def _raise_after_an_answer(error: type[BaseException]) -> None:
    answer("llava", "sdpa", RAGGED)
    raise error


@pytest.mark.parametrize("block", range(6))
def test_an_interrupt_in_any_block_leaves_nothing(block: int) -> None:
    """Also hooks on projections go, and the mark that a cache is followed."""
    lm = model("llava")
    before, hooks = logits(answer("llava", "sdpa", RAGGED)), attributes(lm)
    given = inputs("llava", RAGGED)
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES["mixture"]}):
        cache = lm(**given).past_key_values
        handle = lm.model.language_model.layers[block].mlp.register_forward_hook(raises(KeyboardInterrupt()))
        try:
            with pytest.raises(KeyboardInterrupt):
                lm(**given)
            with pytest.raises(KeyboardInterrupt):
                lm(input_ids=torch.full((3, 1), 17), past_key_values=cache)
        finally:
            handle.remove()
    assert attributes(lm) == hooks
    assert not cache.layers[0].active
    assert torch.equal(logits(answer("llava", "sdpa", RAGGED)), before)
