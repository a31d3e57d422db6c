"""VisPruner (arXiv 2412.01818): tokens that the CLS row looks at, and others that are not alike."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.amounts import Budget, check_budget, fraction
from tokenprune.seen.vision import Block, check_block

from .pictures import best, per_picture, unit

ROUND = 8
"""Tokens that a round drops at most."""


@dataclass(frozen=True)
class VisPruner(Scorer):
    """Important tokens by the attention of the CLS row; of the others, duplicates leave in rounds.

    Args:
        important: how many of the tokens kept in a picture are important ones; a share, usually. Rounds down.
        block: tower block to read.
    """

    important: Budget = 0.5
    block: Block = "features"

    def __post_init__(self) -> None:
        check_budget(self.important)
        check_block(self.block)

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (self.block,)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        salience, features = seen.vision.salience(self.block), seen.vision.features(self.block)

        def choose(tokens: Int[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
            count = min(keep, floored(self.important, keep))
            by_attention = best(salience[tokens], len(tokens))
            others = by_attention[count:]
            return torch.cat([by_attention[:count], diverse(unit(features[tokens]), others, keep - count)])

        return per_picture(seen, choose)


def floored(budget: Budget, keep: int) -> int:
    """A number of tokens, or a share of `keep`, rounded down."""
    if isinstance(budget, int):
        return budget
    return int((fraction(budget) if isinstance(budget, str) else Fraction(str(budget))) * keep)


def diverse(rows: Float[Tensor, "m d"], order: Int[Tensor, "r"], keep: int) -> Int[Tensor, "keep"]:
    """Of the places in `order`, the `keep` left when rounds drop what is most like something else.

    A round compares every second one (the first, the third ...) with those between, by cosine, and drops up to eight
    of them. The others go on by falling likeness, then those between.
    """
    likeness = rows @ rows.T
    while len(order) > keep:
        tried, between = order[::2], order[1::2]
        drop = min(ROUND, len(order) - keep, len(tried))
        if not len(between):
            return order[:keep]
        near = likeness[tried[:, None], between].amax(1)
        order = torch.cat([tried[near.argsort(descending=True, stable=True)[drop:]], between])
    return order
