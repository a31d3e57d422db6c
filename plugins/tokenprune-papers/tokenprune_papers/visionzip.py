"""VisionZip (arXiv 2412.04467): tokens that the CLS row looks at, and evenly spaced ones that take in the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.amounts import Budget, check_budget, resolve_budget
from tokenprune.seen.vision import Block, check_block

from .pictures import best, rest, shares


@dataclass(frozen=True)
class VisionZip(Scorer):
    """Dominant tokens by the attention of the CLS row; contextual ones at equal steps among the others.

    Goes with the merger `contextual`, for which contextual tokens have negative scores.

    Args:
        contextual: how many of the tokens kept in a picture are contextual; a share, usually.
        block: tower block to read.
    """

    contextual: Budget = "10/64"
    block: Block = "features"

    def __post_init__(self) -> None:
        check_budget(self.contextual)
        check_block(self.block)

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (self.block,)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        salience = seen.vision.salience(self.block)
        score = torch.full_like(salience, -2)
        pictures = seen.vision.pictures
        for tokens, keep in zip(pictures, shares(seen.keep, [len(tokens) for tokens in pictures]), strict=True):
            targets = resolve_budget(self.contextual, keep)
            dominant = best(salience[tokens], keep - targets)
            left = rest(len(tokens), dominant)
            step = max(1, len(left) // max(1, targets))
            score[tokens[dominant]] = 1
            score[tokens[left[::step][:targets]]] = -1
        return score
