"""One prompt's part: how probable its answer is when one window of visual tokens goes on from a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...api import prune
from ...builtin.schedules import Fixed
from ...model.anatomy import Anatomy
from ...parts.scorer import Scorer
from ...recipe import Pass, Recipe
from ...seen.prompt import Seen
from .windows import Window


@dataclass(frozen=True, eq=False)
class GivenScores(Scorer):
    """Scores made beforehand, one row per prompt of a single batch; the engine asks prompt by prompt, in order."""

    rows: Iterator[Float[Tensor, "n"]]

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        return next(self.rows).to(seen.visual.device)


@torch.no_grad()
def logits(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    layer: int | None,
    scorer: Scorer | None,
    keep: int,
    copies: int = 1,
) -> Float[Tensor, "copies vocab"]:
    """Logits after a prompt, `copies` times in one batch; from `layer` on with the scorer's `keep` best visual tokens.

    Without a scorer nothing is dropped. `inputs` are those of one prompt; their first axis is repeated.
    """
    batch = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    if scorer is None or layer is None:
        return model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
    recipe = Recipe("horizon", (Pass(scorer, Fixed(layer=layer, keep=keep)),))
    with prune(model, recipe):
        return model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()


def row(
    anatomy: Anatomy,
    inputs: Mapping[str, Tensor],
    token: int,
    cut: Sequence[Window],
    layers: Sequence[int],
    batch: int = 32,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """One prompt's part, as JSON: p(token) with all visual tokens (`full`), and per layer with `none` and `windows`.

    Each row of a batch is this prompt with another window; `advance()` is called after each layer.
    """
    model, n = anatomy.model, int(anatomy.visual(inputs["input_ids"]).sum())
    full = logits(model, inputs, None, None, n)
    answer: dict[str, Any] = {
        "tokens": n,
        "full": probabilities(full, token)[0],
        "right": int(full.argmax(-1)) == token,
    }
    none: list[float] = []
    kept: list[list[float]] = []
    for layer in layers:
        none += probabilities(logits(model, inputs, layer, GivenScores(iter([torch.zeros(n)])), keep=0), token)
        at = dict[int, float]()
        for part in _batches(cut, batch):
            scores = torch.zeros(len(part), n)
            for line, which in zip(scores, part, strict=True):
                line[list(cut[which].tokens)] = 1
            size = len(cut[part[0]].tokens)
            found = logits(model, inputs, layer, GivenScores(iter(scores)), size, len(part))
            at.update(zip(part, probabilities(found, token), strict=True))
        kept.append([at[i] for i in range(len(cut))])
        advance()
    return {**answer, "none": none, "windows": kept}


def _batches(cut: Sequence[Window], batch: int) -> Iterator[list[int]]:
    """Numbers of windows, at most `batch` of one size at a time: a schedule keeps as many in every row."""
    order = sorted(range(len(cut)), key=lambda i: len(cut[i].tokens))
    for _, group in groupby(order, lambda i: len(cut[i].tokens)):
        same = list(group)
        yield from (same[start : start + batch] for start in range(0, len(same), batch))


def information(found: Mapping[str, Any]) -> Float[np.ndarray, "layers windows"]:
    """p(only this window) - p(none), from a `row`."""
    return np.array(found["windows"]) - np.array(found["none"])[:, None]


def probabilities(logits: Float[Tensor, "b vocab"], token: int) -> list[float]:
    """Of one token in each row, six digits, as JSON."""
    return [float(f"{p:.6g}") for p in logits.softmax(-1)[:, token].tolist()]
