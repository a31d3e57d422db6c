"""HiPrune (arXiv 2508.00553): what a middle block of the tower looks at, what lies beside, and what a deep one does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.seen.vision import Block, check_block

from .pictures import best, per_picture


@dataclass(frozen=True)
class HiPrune(Scorer):
    """Anchors by attention received in a middle block, the tokens beside them, and registers by a deep block's.

    Args:
        alpha: a fifth of this share of a picture's kept tokens are anchors: each comes with up to four neighbours.
        middle: tower block that shows objects.
        deep: tower block that shows the whole.
    """

    alpha: float = 0.1
    middle: Block = "8/24"
    deep: Block = "features"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        check_block(self.middle)
        check_block(self.deep)

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (self.middle, self.deep)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        middle, deep = seen.vision.received(self.middle), seen.vision.received(self.deep)
        places = seen.vision.places

        def choose(tokens: Int[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
            anchors = best(middle[tokens], min(keep, round(keep * self.alpha / 5)))
            grid = places[tokens, 1:]
            apart = (grid[:, None] - grid[anchors]).abs().sum(-1)
            beside = ((apart == 1) & (grid[:, None] >= 0).all(-1) & (grid[anchors] >= 0).all(-1)).any(1)
            rank = torch.empty_like(tokens)  # by the deep block, best first
            rank[best(deep[tokens], len(tokens))] = torch.arange(len(tokens), device=tokens.device)
            first = torch.where(beside, rank - len(tokens), rank).index_fill(0, anchors, -2 * len(tokens))
            return best(-first, keep)

        return per_picture(seen, choose)
