"""HoloV (arXiv 2510.02912): every crop of a picture gets a share of the budget by how telling its tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.seen.vision import Block, check_block

from .pictures import per_picture

ROUND_OFF = 1e-6
"""What the released code adds to denominators."""


@dataclass(frozen=True)
class HoloV(Scorer):
    """In each crop the tokens with most attention of the CLS row, as many as its mean token score gives it.

    A token's score is its attention plus `alpha` times how much its likeness to the others in the crop varies. As in
    the released code that variance is scaled to the mean attention of its own crop, which all but takes it out of the
    crop's mean again.

    Args:
        crops: stretches of equal length that a picture is cut into; the first are one token longer if need be.
        alpha: weight of the variance.
        block: tower block to read.
    """

    crops: int = 16
    alpha: float = 0.09
    block: Block = "features"

    def __post_init__(self) -> None:
        if self.crops < 1:
            raise ValueError(f"crops must be >= 1, got {self.crops}")
        if not self.alpha >= 0:
            raise ValueError(f"alpha must be >= 0, got {self.alpha}")
        check_block(self.block)

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (self.block,)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        salience = seen.vision.salience(self.block)
        attention = 1000 * salience.to(torch.promote_types(salience.dtype, torch.float32))

        def choose(tokens: Int[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
            crops = min(self.crops, len(tokens))
            size, longer = divmod(len(tokens), crops)
            first, others = torch.arange(len(tokens), device=tokens.device).tensor_split([longer * (size + 1)])
            batches = [first.view(longer, size + 1), others.view(crops - longer, size)]  # of equal length: no loop
            looked = [attention[tokens[crop]] for crop in batches]
            varies = [variance(seen.states[seen.visual[tokens[crop]]]) for crop in batches]
            told = [self.worth(*pair) for pair in zip(looked, varies, strict=True)]
            counts = quotas(torch.cat(told).tolist(), [size + (i < longer) for i in range(crops)], keep)
            order = [
                crop.gather(1, own.argsort(dim=1, descending=True, stable=True))
                for crop, own in zip(batches, looked, strict=True)
            ]
            ranked = [row for rows in order for row in rows]
            return torch.cat([row[:count] for row, count in zip(ranked, counts, strict=True)])

        return per_picture(seen, choose)

    def worth(self, attention: Float[Tensor, "c m"], varies: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
        """The mean score of each crop's tokens, given the mean of their variances."""
        mean = attention.mean(1)
        return mean + self.alpha * mean / (varies.to(mean.dtype) + ROUND_OFF) * varies.to(mean.dtype)


def variance(rows: Float[Tensor, "c m d"]) -> Float[Tensor, "c"]:
    """How much each row's cosine to the other rows of its crop varies, the mean of a crop; zero if it is alone.

    The row itself counts as one with cosine 0, as in the released code.
    """
    c, m = rows.shape[:2]
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if m < 2:
        return precise.new_zeros(c)
    length = torch.linalg.vector_norm(precise, dim=-1) + ROUND_OFF
    likeness = precise @ precise.mT / (length[:, :, None] * length[:, None])  # rows scaled first would be a copy
    likeness.diagonal(dim1=1, dim2=2).zero_()
    mean = likeness.sum(2) / (m - 1)
    squares = likeness.square_().sum(2) - (m - 2) * mean.square()  # = the sum of (likeness - mean)^2 over all m
    return squares.clamp_min(0).mean(1) / (m - 1)


def quotas(worth: list[float], sizes: list[int], keep: int) -> list[int]:
    """`keep` split in proportion to worth, rounded down; what is left goes to the worthiest that still have room."""
    total = sum(worth) + ROUND_OFF
    if not total > 0:  # NaN
        worth, total = [1.0] * len(worth), float(len(worth))
    counts = [min(size, int(keep * part / total)) for part, size in zip(worth, sizes, strict=True)]
    order = sorted(range(len(worth)), key=lambda i: (-worth[i], i))
    while (left := min(keep, sum(sizes)) - sum(counts)) > 0:
        for i in [i for i in order if counts[i] < sizes[i]][:left]:
            counts[i] += 1
    return counts
