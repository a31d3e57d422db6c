"""Answers to every question without pruning and with each recipe, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...amounts import Budget
from ...api import Pruning, prune
from ..bench import Bench, Measured
from ..loading import Loaded

RECIPES = ("entropyprune", "entropyprune-released@layer-1", "fastv", "random")
BUDGET = "1/3"
"""What `RECIPES` are compared at: visual tokens as an average over the decoder layers."""

RUNS = 9
"""Rounds in which prefills are timed."""


@dataclass(frozen=True)
class Side:
    """One way to answer.

    Attributes:
        name: the recipe, or that nothing was pruned.
        answers: by kind of question.
        left: the picture with the patches that were dropped for the last question darkened.
        measured: the prefill of that question.
        flops_share: left of the decoder's prefill.
        kv_mib: KV cache of its visual tokens.
    """

    name: str
    answers: dict[str, str]
    left: Image.Image
    measured: Measured
    flops_share: float
    kv_mib: float

    @property
    def panel(self) -> tuple[Image.Image, str]:
        """Of a `sheet`: what is left, the name and the last answer."""
        *_, answer = self.answers.values()
        return self.left, f"{self.name}\n{answer}"


def compare(
    loaded: Loaded,
    picture: Image.Image,
    asked: Mapping[str, str],
    recipes: Sequence[str],
    budget: Budget | None,
    *,
    runs: int = RUNS,
    done: Callable[[], object] = lambda: None,
) -> tuple[list[Side], Pruning, dict[str, Any]]:
    """Ask every question without pruning and with each recipe; then time the prefill of the last one, in turn.

    Args:
        loaded: the model.
        picture: what is asked about.
        asked: questions by kind.
        recipes: by name or path, at least one.
        budget: as in `prune`, for all of them.
        runs: timed rounds.
        done: called after each answer and each round, `steps(asked, recipes, runs)` times.

    Returns:
        The sides, unpruned first; the first recipe's pruning and the inputs it saw last, for its report.

    Raises what `prune` and a pruned prefill raise.
    """
    forms = [prune(loaded.model, one, budget=budget, processor=loaded.processor) for one in recipes]
    inputs = {kind: loaded.inputs(question, [picture]) for kind, question in asked.items()}
    *_, last = inputs.values()
    answers = [_answers(loaded, inputs, pruning, done) for pruning in (None, *forms)]
    left = [picture, *(form.overlay(picture, last) if form.state and form.state.views else picture for form in forms)]
    bench = Bench(loaded.model, last, new_tokens=2, processor=loaded.processor)
    found = bench.measure(recipes, runs=runs, budget=budget, done=done)
    sizes, width = bench.geometry, loaded.model.dtype.itemsize
    sides = []
    for one, said, drawn in zip(found, answers, left, strict=True):
        share, kv = sizes.flops_share(one.plan, bench.visual, bench.text), sizes.kv_mib(one.plan, bench.visual, width)
        sides.append(Side(one.name, said, drawn, one, share, kv))
    return sides, forms[0], last


def _answers(
    loaded: Loaded, inputs: Mapping[str, dict[str, Any]], pruning: Pruning | None, done: Callable[[], object]
) -> dict[str, str]:
    """To all questions, by kind."""
    said = {}
    with nullcontext() if pruning is None else pruning:
        for kind, given in inputs.items():
            said[kind] = loaded.answer(given)
            done()
    return said


def steps(asked: Mapping[str, str], recipes: Sequence[str], runs: int = RUNS) -> int:
    """How often `compare` calls `done`."""
    return len(asked) * (len(recipes) + 1) + Bench.rounds(runs)
