"""Whether pruning holds for a model type: compared on a tiny random model of its config, before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..builtin.schedules import Fixed
from ..builtin.scorers.diversity import Diversity
from ..builtin.scorers.random import Random
from ..model.anatomy import STATES, Anatomy
from ..parts.adapter import Adapter
from ..parts.scorer import Scorer
from ..pruner import Pruner
from ..recipe import Pass, Recipe
from ..seen.prompt import Block, Seen
from ..state.prompt import Prompt
from .masking import hidden_by_mask
from .shortened import kept_columns, shortened
from .shrink import said
from .trial import Trial
from .verdict import ATTENTION, Comparison

LAID_OUT = "modules and blocks are such as pruning follows"
KEEP_ALL = "keeping all == no pruning"
STEPS = 3
"""Tokens of each answer that is compared."""


def check(config: Any, adapter: Adapter) -> list[Comparison]:
    """Compare on a tiny random model of a config of any size: a ragged, left-padded batch with random picture features.

    Raises:
        UnsupportedModelError: pictures are not columns of its decoder, or it cannot be made small, built or run.
    """
    trial = Trial.of(config)
    try:
        anatomy = Anatomy.of(trial.model, adapter)
        with _pruned(anatomy, _recipes(anatomy)["before block 0"]):
            pass
    except Exception as error:  # whatever a model that is laid out otherwise can raise
        return [Comparison(LAID_OUT, said(error))]
    tests: dict[str, Callable[[], str | None]] = {KEEP_ALL: lambda: _keeps(trial, anatomy)}
    other = "masking" if STATES.isdisjoint(anatomy.kinds) else "the shortened sequence"
    for name, recipe in _recipes(anatomy).items():
        tests[f"pruning {name} == {other}"] = lambda recipe=recipe: _prunes(trial, anatomy, recipe)  # type: ignore[misc]
    tests[ATTENTION] = lambda: _attends(trial, anatomy)
    found = [Comparison(name, _outcome(test)) for name, test in tests.items()]
    if trial.form is None:
        found.append(Comparison("random picture features", "its forward takes none that change what it says"))
    return found


def _outcome(test: Callable[[], str | None]) -> str | None:
    try:
        with torch.no_grad():
            return test()
    except Exception as error:
        return said(error)


def _recipes(anatomy: Anatomy) -> dict[str, list[Pass]]:
    """By what they are for: before block 0, at one layer, at three, and of all picture tokens."""
    last = anatomy.last_layer
    middle = max(1, last // 2)

    def step(layer: int, keep: int, scorer: Scorer) -> Pass:
        return Pass(scorer=scorer, schedule=Fixed(layer=layer, keep=keep))

    stages = sorted({0, middle, last})
    return {
        "before block 0": [step(0, 3, Diversity())],
        f"at layer {middle}": [step(middle, 3, Diversity())],
        f"at layers {', '.join(map(str, stages))}": [
            step(layer, 5 - 2 * number, Random()) for number, layer in enumerate(stages)
        ],
        "all picture tokens": [step(middle, 0, Random())],
    }


@contextmanager
def _pruned(anatomy: Anatomy, passes: list[Pass]) -> Iterator[Pruner]:
    pruner = Pruner(anatomy.model, Recipe("check", tuple(passes)), anatomy.adapter).attach()
    with ExitStack() as stack:
        stack.callback(pruner.remove)
        yield pruner


def _keeps(trial: Trial, anatomy: Anatomy) -> str | None:
    plain = _answered(trial)
    with _pruned(anatomy, [Pass(scorer=Random(), schedule=Fixed(layer=1, keep=1.0))]):
        kept = _answered(trial)
    return None if torch.equal(plain, kept) else f"logits differ by up to {_distance(kept, plain):.1e} of theirs"


def _prunes(trial: Trial, anatomy: Anatomy, passes: list[Pass]) -> str | None:
    with _pruned(anatomy, passes) as pruner:
        found, state = _answered(trial), pruner.state
    if state is None or not state.views:
        return "nothing was dropped"
    expected = _reference(trial, anatomy, state)
    if (distance := _distance(found, expected)) > 1e-3:
        return f"logits differ by up to {distance:.1e} of theirs"
    plain = _answered(trial)
    return None if _distance(found, plain) > 1e-2 else "pruning changed nothing"


def _reference(trial: Trial, anatomy: Anatomy, state: Prompt) -> Float[Tensor, "b steps v"]:
    mask = trial.prompt.mask
    if STATES.isdisjoint(anatomy.kinds):
        with hidden_by_mask(anatomy.model, mask, state.views, adapter=anatomy.adapter):
            return _answered(trial)
    alone = []
    for row, length in enumerate(mask.sum(1).tolist()):
        kept = kept_columns(state.views, row, mask.shape[1] - length)
        with shortened(anatomy.model, length, kept, anatomy.adapter):
            alone.append(_answered(trial.alone(row)))
    return torch.cat(alone)


def _answered(trial: Trial) -> Float[Tensor, "b steps v"]:
    """Logits of a greedy answer."""
    wanted = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return torch.stack(trial.model.generate(**trial.inputs, **wanted).logits, dim=1)


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of how far what is expected spreads."""
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / (expected - expected.mean()).abs().max().clamp_min(1e-6))


@dataclass(frozen=True, eq=False)
class _Watcher(Scorer):
    """Reads attention rows of the first prompt."""

    block: Block
    found: list[tuple[Int[Tensor, "t"], Int[Tensor, "n"], Float[Tensor, "H t n"]]]

    def score(self, seen: Seen) -> Tensor:
        self.found.append((seen.words, seen.columns, seen.attention("text", self.block)))
        return -seen.columns.float()


def _attends(trial: Trial, anatomy: Anatomy) -> str | None:
    """Of the text behind a picture, in one block of each layer type, read before and behind a stage."""
    output = trial.model(**trial.inputs, use_cache=False, output_attentions=True)
    attending = [number for number, kind in enumerate(anatomy.kinds) if kind not in STATES]
    weights: Sequence[Tensor] | None = getattr(output, "attentions", None)
    if not weights or len(weights) not in (anatomy.depth, len(attending)):
        return "the model gives no attention weights to compare with"
    own = dict(zip(attending if len(weights) == len(attending) else range(anatomy.depth), weights, strict=True))
    compared = 0
    for block, behind in (("previous", 1), ("next", 0)):
        numbers = [n for n in attending if 1 <= n <= anatomy.last_layer - behind]
        for number in {anatomy.kinds[n]: n for n in reversed(numbers)}.values():
            if anatomy.attention(number) is None:
                return f"block {number} ({anatomy.kinds[number]}) has no queries and keys where most have them"
            watcher = _Watcher(block, [])  # type: ignore[arg-type]
            with _pruned(anatomy, [Pass(scorer=watcher, schedule=Fixed(layer=number + behind, keep=3))]):
                trial.model(**trial.inputs, use_cache=False)
            if failure := _rows_differ(watcher, own[number], trial.prompt.mask[0].bool()):
                return f"{failure} in block {number} ({anatomy.kinds[number]}), read as the {block} one"
            compared += 1
    return None if compared else "there is no block that a scorer can read"


def _rows_differ(watcher: _Watcher, weights: Float[Tensor, "b H s s"], mask: Bool[Tensor, "s"]) -> str | None:
    real = mask.nonzero()[:, 0]
    words, columns, rows = watcher.found[0]
    expected = weights[0][:, real[words]][..., real[columns]].float()
    if rows.shape != expected.shape:
        return f"rows of shape {(*rows.shape,)} instead of {(*expected.shape,)}"
    worst = float((rows - expected).abs().max())
    return None if worst <= 1e-4 else f"rows differ by up to {worst:.1e}"
