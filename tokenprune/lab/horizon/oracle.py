"""What an oracle keeps: the visual tokens of most information, beside random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...builtin.scorers.random import Random
from ...errors import BudgetError
from .probe import GivenScores, information, logits, probabilities
from .windows import Window, token_scores


def check_oracle(keep: int, n: int) -> None:
    """Raise BudgetError unless `keep` of `n` visual tokens leave something to drop."""
    if not 0 < keep < n:
        raise BudgetError(f"an oracle keeps some of the {n} visual tokens, got {keep}: use 1 to {n - 1}")


def oracle_row(
    model: nn.Module,
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
            scorer = GivenScores(iter([token_scores(told[i].tolist(), cut, n)])) if name == "oracle" else Random(seed)
            answer = logits(model, inputs, layer, scorer, keep)
            p += probabilities(answer, token)
            right.append(int(answer.argmax(-1)) == token)
        result[name] = {"p": p, "right": right}
    return result
