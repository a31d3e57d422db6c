"""How much a window of visual tokens still tells at each depth, and where nothing is left (arXiv 2512.07580).

The information of a window at layer L is p(only this window's visual tokens go on from layer L) - p(none does), where
p is the softmax probability of the token that begins the right answer. It needs answers, so it is for analysis and for
oracles; `layer: L` means, as everywhere, that the first L blocks see every token. Positions stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..builtin.schedules import Fixed
from ..builtin.scorers.random import Random
from ..errors import BudgetError
from ..parts.adapter import Adapter
from ..parts.scorer import Scorer
from ..pruner import Pruner
from ..recipe import Pass, Recipe
from ..seen.prompt import Seen
from ..show.overlay import placed

RULE = (
    "the first layer from which, there and at every later layer measured, the mean over prompts and windows of "
    "|information| is at most {threshold:g} of its largest value over the layers; null if there is none"
)


@dataclass(frozen=True)
class Window:
    """Neighbouring visual tokens of one picture.

    Attributes:
        picture: which picture or video of the prompt.
        panel: which frame, or which of several grids over the same picture.
        box: left, top, right, bottom in [0, 1] of what the model saw of it.
        tokens: their places among the prompt's visual tokens.
    """

    picture: int
    panel: int
    box: tuple[float, float, float, float]
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Given(Scorer):
    """Scores made beforehand, one row per prompt of a single batch; the engine asks prompt by prompt, in order."""

    rows: Iterator[Float[Tensor, "n"]]

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        return next(self.rows).to(seen.visual.device)


def windows(adapter: Adapter, config: Any, inputs: Mapping[str, Tensor], size: int) -> list[Window]:
    """The pictures of a prompt (a batch of one) cut into `size x size` tokens each; less at the far edges.

    Tokens without a place in a picture belong to none. Raises TokenpruneError if this family cannot tell places.
    """
    ids = inputs["input_ids"]
    visual = adapter.visual(config, ids)
    token = visual[0].cumsum(0) - 1  # column of the prompt -> place among its visual tokens
    found: list[Window] = []
    for number, picture in enumerate(placed(adapter, config, ids, visual, inputs, 0)):
        for panel in sorted({int(p) for p in picture.boxes[:, 0].tolist() if p == p}):
            mine = ((picture.boxes[:, 0] == panel) & ~picture.boxes[:, 1].isnan()).nonzero()[:, 0]
            boxes, tokens = picture.boxes[mine, 1:], token[picture.columns[mine]]
            columns, rows = (
                torch.from_numpy(np.unique(boxes[:, side].numpy(), return_inverse=True)[1]) // size for side in (0, 1)
            )
            for row, column in sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))):
                here = (rows == row) & (columns == column)
                left, top = boxes[here, :2].amin(0).tolist()
                right, bottom = boxes[here, 2:].amax(0).tolist()
                found.append(Window(number, panel, (left, top, right, bottom), tuple(tokens[here].tolist())))
    return found


@torch.no_grad()
def logits(
    model: nn.Module,
    adapter: Adapter,
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
    pruner = Pruner(model, recipe, adapter).attach()
    try:
        return model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
    finally:
        pruner.remove()


def row(
    model: nn.Module,
    adapter: Adapter,
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
    n = _visual(model, adapter, inputs)
    full = logits(model, adapter, inputs, None, None, n)
    answer: dict[str, Any] = {"tokens": n, "full": _p(full, token)[0], "right": int(full.argmax(-1)) == token}
    none: list[float] = []
    kept: list[list[float]] = []
    for layer in layers:
        none += _p(logits(model, adapter, inputs, layer, Given(iter([torch.zeros(n)])), keep=0), token)
        at = dict[int, float]()
        for part in _batches(cut, batch):
            scores = torch.zeros(len(part), n)
            for line, which in zip(scores, part, strict=True):
                line[list(cut[which].tokens)] = 1
            size = len(cut[part[0]].tokens)
            found = logits(model, adapter, inputs, layer, Given(iter(scores)), size, len(part))
            at.update(zip(part, _p(found, token), strict=True))
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


def token_scores(information: Sequence[float], cut: Sequence[Window], n: int) -> Float[Tensor, "n"]:
    """The oracle's score: each token has its window's information; tokens of no window come last."""
    scores = torch.full((n,), float("-inf"))
    for value, window in zip(information, cut, strict=True):
        scores[list(window.tokens)] = value
    return scores


def check_oracle(keep: int, n: int) -> None:
    """Raise BudgetError unless `keep` of `n` visual tokens leave something to drop."""
    if not 0 < keep < n:
        raise BudgetError(f"an oracle keeps some of the {n} visual tokens, got {keep}: use 1 to {n - 1}")


def oracle_row(
    model: nn.Module,
    adapter: Adapter,
    inputs: Mapping[str, Tensor],
    token: int,
    cut: Sequence[Window],
    layers: Sequence[int],
    found: Mapping[str, Any],
    keep: int,
    seed: int = 0,
) -> dict[str, Any]:
    """p(token), and whether it comes first, per layer that keeps the `keep` tokens of most information, or random ones.

    `found` is the prompt's `row`.
    """
    n = found["tokens"]
    check_oracle(keep, n)
    result: dict[str, Any] = {}
    told = information(found)
    for name in ("oracle", "random"):
        p, right = [], []
        for i, layer in enumerate(layers):
            scorer = Given(iter([token_scores(told[i].tolist(), cut, n)])) if name == "oracle" else Random(seed)
            answer = logits(model, adapter, inputs, layer, scorer, keep)
            p += _p(answer, token)
            right.append(int(answer.argmax(-1)) == token)
        result[name] = {"p": p, "right": right}
    return result


def strength(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean of |information| over prompts and windows, per layer."""
    return [float(f"{x:.6g}") for x in np.mean([np.abs(information(row)).mean(1) for row in rows], axis=0)]


def vanishes(strengths: Sequence[float], layers: Sequence[int], threshold: float) -> int | None:
    """The horizon: see RULE."""
    limit = threshold * max(strengths)
    above = [i for i, value in enumerate(strengths) if value > limit]
    first = above[-1] + 1 if above else 0
    return layers[first] if first < len(layers) else None


def summary(rows: Sequence[Mapping[str, Any]], layers: Sequence[int], threshold: float) -> dict[str, Any]:
    """What the rows of several prompts say together: mean probabilities, strength per layer, and the horizon."""
    strengths = strength(rows)
    return {
        "prompts": len(rows),
        "right": sum(row["right"] for row in rows),
        "full": round(float(np.mean([row["full"] for row in rows])), 6),
        "none": [round(float(p), 6) for p in np.mean([row["none"] for row in rows], axis=0)],
        "strength": strengths,
        "horizon": vanishes(strengths, layers, threshold),
    }


def oracle_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per layer the mean p of the right first token, and the share of prompts where it comes first."""

    def mean(name: str, key: str) -> list[float]:
        return [round(float(x), 6) for x in np.mean([row[name][key] for row in rows], axis=0)]

    return {name: {key: mean(name, key) for key in ("p", "right")} for name in ("oracle", "random")}


def _visual(model: Any, adapter: Adapter, inputs: Mapping[str, Tensor]) -> int:
    return int(adapter.visual(model.config, inputs["input_ids"]).sum())


def _p(logits: Float[Tensor, "b vocab"], token: int) -> list[float]:
    return [float(f"{p:.6g}") for p in logits.softmax(-1)[:, token].tolist()]
