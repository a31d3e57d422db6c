"""Picking tokens, and gathering what is left of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def farthest_first(features: Float[Tensor, "n d"], keep: int) -> Int[Tensor, "k"]:
    """Greedy max-min selection on cosine distance, in the order picked (DivPrune, arXiv 2503.02175).

    The first pick is the token whose nearest other token is farthest; ties go to the lower column. One n x n matrix,
    then a running maximum of similarity: O(n^2 d + n k) time, O(n^2) memory.
    """
    likeness = cosines(features).fill_diagonal_(float("-inf"))
    picked = torch.empty(keep, dtype=torch.long, device=features.device)
    nearest = likeness.amax(0)  # of the empty selection: likeness to the nearest other token
    for i in range(keep):
        pick = nearest.argmin(0, keepdim=True)  # one element: a number would be a sync
        picked[i : i + 1] = pick
        row = likeness.index_select(0, pick)[0]
        nearest = row if i == 0 else torch.maximum(nearest, row)
        nearest.index_fill_(0, pick, float("inf"))  # taken, for good
    return picked


def cosines(features: Float[Tensor, "n d"], block: int = 480) -> Float[Tensor, "n n"]:
    """Cosine similarity of all pairs, float32. Half of a symmetric matrix, then mirrored: exactly symmetric."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    n = len(unit)
    found = unit.new_empty(n, n)
    for start in range(0, n, block):
        stop = min(start + block, n)
        part = unit[start:stop] @ unit[start:].T
        found[start:stop, start:] = part
        found[stop:, start:stop] = part[:, stop - start :].T
    return found


def rank_scores(order: Int[Tensor, "k"], n: int) -> Float[Tensor, "n"]:
    """Scores that make the ordinary top-k pick `order` in its order; tokens not listed come last."""
    score = torch.full((n,), float(-n - 1), device=order.device)
    return score.index_put((order,), -torch.arange(len(order), device=order.device, dtype=score.dtype))


def compact_right(keep: Bool[Tensor, "b k"], width: int) -> tuple[Int[Tensor, "b {width}"], Bool[Tensor, "b {width}"]]:
    """Columns to gather so that each row's kept columns stand at the right end in their order, and which are real.

    Rows that keep fewer than `width` get dropped columns on the left, marked False (left padding). No device sync.
    """
    order = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return order, keep.gather(1, order)


def gather_columns(states: Float[Tensor, "*lead b k w"], index: Int[Tensor, "b j"]) -> Float[Tensor, "*lead b j w"]:
    """Pick columns per row; a broadcast row axis (`b = 1`) is expanded first."""
    states = states.expand(*states.shape[:-3], index.shape[0], *states.shape[-2:])
    return states.gather(-2, index[:, :, None].expand(*states.shape[:-2], index.shape[1], states.shape[-1]))
