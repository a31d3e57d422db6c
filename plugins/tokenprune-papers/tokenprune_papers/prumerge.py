"""LLaVA-PruMerge and PruMerge+ (arXiv 2403.15388): tokens that the CLS row looks at, and others at equal steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.amounts import Budget, check_budget, resolve_budget
from tokenprune.seen.vision import Block, check_block

from .pictures import best, per_picture, rest


@dataclass(frozen=True)
class PruMerge(Scorer):
    """Tokens with the highest attention of the CLS row; the others kept lie at equal steps between them (PruMerge+).

    Goes with the merger `neighbours`.

    Args:
        spread: how many of the tokens kept in a picture lie at equal steps among the rest; a share, usually.
        block: tower block to read.
        heads: attention of one `joined` head (the released code), or the `mean` over heads.
    """

    spread: Budget = 0
    block: Block = -1
    heads: Literal["joined", "mean"] = "joined"

    def __post_init__(self) -> None:
        check_budget(self.spread)
        check_block(self.block)

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (self.block,)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        salience = seen.vision.salience(self.block, self.heads)

        def choose(tokens: Int[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
            count = resolve_budget(self.spread, keep)
            top = best(salience[tokens], keep - count)
            left = rest(len(tokens), top)
            steps = torch.arange(count, device=left.device) * len(left) // max(1, count)
            return torch.cat([top, left[steps]])

        return per_picture(seen, choose)
