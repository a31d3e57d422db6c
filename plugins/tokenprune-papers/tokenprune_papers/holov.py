"""HoloV (arXiv 2510.02912): every crop of a picture gets a share of the budget by how telling its tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.tower import Block, check_block

from .pictures import best, per_picture, unit


@dataclass(frozen=True)
class HoloV(Scorer):
    """In each crop the tokens with most attention of the CLS row, as many as its mean token score gives it.

    A token's score is its attention plus `alpha` times how much its likeness to the others in the crop varies.

    Args:
        crops: stretches of equal length that a picture is cut into.
        alpha: weight of the variance, which is scaled to the mean of the attention.
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
    def tower(self) -> tuple[Block, ...]:
        return (self.block,)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        salience, features = seen.tower.salience(self.block), unit(seen.hidden)

        def choose(tokens: Int[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
            parts = torch.arange(len(tokens), device=tokens.device).tensor_split(min(self.crops, len(tokens)))
            attention = salience[tokens].to(features.dtype)
            varies = torch.cat([variance(features[tokens[part]]) for part in parts])
            scale = attention.mean() / varies.mean().clamp_min(1e-12)
            told = attention + self.alpha * scale * varies
            worth = torch.stack([told[part].mean() for part in parts])
            counts = quotas(worth.tolist(), [len(part) for part in parts], keep)
            chosen = [part[best(attention[part], count)] for part, count in zip(parts, counts, strict=True)]
            return torch.cat(chosen)

        return per_picture(seen, choose)


def variance(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m"]:
    """How much each row's cosine to the other rows varies; zero where there are fewer than three."""
    m = len(rows)
    if m < 3:
        return rows.new_zeros(m)
    alone = torch.eye(m, dtype=torch.bool, device=rows.device)
    likeness = (rows @ rows.T).masked_fill(alone, 0)
    mean = likeness.sum(1, keepdim=True) / (m - 1)
    return (likeness - mean).masked_fill(alone, 0).square().sum(1) / (m - 1)


def quotas(worth: list[float], sizes: list[int], keep: int) -> list[int]:
    """`keep` split in proportion to worth, rounded down; what is left goes to the worthiest that still have room."""
    total = sum(worth)
    if not total > 0:
        worth, total = [1.0] * len(worth), float(len(worth))
    counts = [min(size, int(keep * part / total)) for part, size in zip(worth, sizes, strict=True)]
    order = sorted(range(len(worth)), key=lambda i: (-worth[i], i))
    while (left := min(keep, sum(sizes)) - sum(counts)) > 0:
        for i in [i for i in order if counts[i] < sizes[i]][:left]:
            counts[i] += 1
    return counts
