"""Methods that choose in each picture by itself: its share of the budget, then its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Seen

Choose = Callable[[Int[Tensor, "m"], int], Int[Tensor, "k"]]
"""`choose(tokens, keep)`: which of a picture's tokens (places among the m) stay."""


def shares(keep: int, sizes: Sequence[int]) -> list[int]:
    """`keep` split over pictures in proportion to their tokens; what is left goes to the largest remainders."""
    total = sum(sizes)
    keep = min(keep, total)
    parts = [keep * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(keep * sizes[i] % total), i))
    for i in by_remainder[: keep - sum(parts)]:
        parts[i] += 1
    return parts


def per_picture(seen: Seen, choose: Choose) -> Float[Tensor, "n"]:
    """1 for the tokens chosen in each picture (or tile, or frame), else 0. Tokens without a picture come last."""
    score = torch.zeros(len(seen.visual), device=seen.visual.device)
    pictures = seen.vision.pictures
    for tokens, keep in zip(pictures, shares(seen.keep, [len(tokens) for tokens in pictures]), strict=True):
        score[tokens[choose(tokens, keep)]] = 1
    return score


def best(score: Float[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
    """The `keep` highest, best first; ties go to the lower place."""
    return score.argsort(descending=True, stable=True)[:keep]


def rest(m: int, taken: Int[Tensor, "k"]) -> Int[Tensor, "m-k"]:
    """The places that are not taken, in order. No device sync."""
    left = torch.ones(m, dtype=torch.int8, device=taken.device).index_fill_(0, taken, 0)
    return left.argsort(descending=True, stable=True)[: m - len(taken)]


def unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one, float32 or better."""
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return torch.nn.functional.normalize(precise, dim=-1)
