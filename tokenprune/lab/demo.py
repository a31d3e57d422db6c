"""The demo: one picture, a question of each kind, and how recipes answer them at one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from .. import ecl
from ..amounts import Budget
from ..api import Pruning, prune
from ..registry import registry
from .bench import Bench, Measured
from .loading import Loaded

RECIPES = ("entropyprune", "entropyprune-released@layer-1", "fastv", "random")
BUDGET = "1/3"
"""What `RECIPES` are compared at: visual tokens as an average over the decoder layers."""

QUESTIONS = {
    "exists": "is there a red circle?",
    "color": "what color is the square?",
    "count": "how many circles are there?",
    "digit": "what digit is blue?",
    "read": "read the digits",
}
"""Asked about a picture whose truth is not known, by kind."""

RUNS = 9
"""Rounds in which prefills are timed."""

SIDE, GAP, WORDS = 288, 16, 52  # pixels of a sheet's pictures, between them, and of the words below


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
    answers: list[dict[str, str]] = []
    for pruning in (None, *forms):
        with nullcontext() if pruning is None else pruning:
            said = {}
            for kind, given in inputs.items():
                said[kind] = loaded.answer(given)
                done()
            answers.append(said)
    left = [picture, *(form.overlay(picture, last) if form.state and form.state.views else picture for form in forms)]
    bench = Bench(loaded.model, last, new_tokens=2, processor=loaded.processor)
    found = bench.measure(recipes, runs=runs, budget=budget, done=done)
    sizes, width = bench.geometry, loaded.model.dtype.itemsize
    sides = [
        Side(
            one.name,
            said,
            drawn,
            one,
            sizes.flops_share(one.plan, bench.visual, bench.text),
            sizes.kv_mib(one.plan, bench.visual, width),
        )
        for one, said, drawn in zip(found, answers, left, strict=True)
    ]
    return sides, forms[0], last


def steps(asked: Mapping[str, str], recipes: Sequence[str], runs: int = RUNS) -> int:
    """How often `compare` calls `done`."""
    return len(asked) * (len(recipes) + 1) + Bench.rounds(runs)


@torch.inference_mode()
def entropies(loaded: Loaded, inputs: Mapping[str, Any]) -> list[float]:
    """Matrix entropy of this prompt's visual tokens by layer, in nats, unpruned."""
    adapter = registry().adapter(loaded.model.config)
    decoder = adapter.decoder(adapter.base(loaded.model))
    visual = partial(adapter.visual, loaded.model.config, inputs["input_ids"])
    return ecl.layer_entropies(adapter, decoder, visual, partial(loaded.model, **inputs, logits_to_keep=1))


def sheet(panels: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Pictures side by side, each with up to two lines of words below."""
    drawn = Image.new("RGB", (GAP + len(panels) * (SIDE + GAP), SIDE + WORDS + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=17)
    for number, (picture, words) in enumerate(panels):
        left, shrink = GAP + number * (SIDE + GAP), SIDE / max(picture.size)
        size = (round(picture.width * shrink), round(picture.height * shrink))
        drawn.paste(picture.convert("RGB").resize(size, Image.Resampling.NEAREST), (left, GAP))
        pen.multiline_text((left, SIDE + GAP + 8), words, fill="#333333", font=font, spacing=5)
    return drawn
