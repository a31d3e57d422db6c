"""VScan (arXiv 2505.22654), first stage: tokens that a shallow block looks at in each window, and a deep block's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.seen.vision import Block, check_block

from .pictures import best, per_picture


@dataclass(frozen=True)
class VScan(Scorer):
    """Local tokens, equally many of each window of the picture, and global ones among the rest, by CLS attention.

    Goes with the merger `nearest`, and with a second pass inside the decoder.

    Args:
        local: share of a picture's kept tokens that windows choose; what windows cannot share equally is global.
        windows: on each side of the picture.
        shallow: tower block for windows.
        deep: tower block for the whole.
    """

    local: float = 0.5
    windows: int = 4
    shallow: Block = "5/24"
    deep: Block = "features"

    def __post_init__(self) -> None:
        if not 0 <= self.local <= 1:
            raise ValueError(f"local must be in [0, 1], got {self.local}")
        if self.windows < 1:
            raise ValueError(f"windows must be >= 1, got {self.windows}")
        check_block(self.shallow)
        check_block(self.deep)

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (self.shallow, self.deep)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        shallow, deep = seen.vision.salience(self.shallow), seen.vision.salience(self.deep)
        places = seen.vision.places

        def choose(tokens: Int[Tensor, "m"], keep: int) -> Int[Tensor, "k"]:
            grid = places[tokens, 1:]
            sides = grid.amax(0).clamp_min(0) + 1
            window = grid * self.windows // sides
            window = window[:, 0] * self.windows + window[:, 1]
            each = int(keep * self.local) // self.windows**2
            order = best(shallow[tokens], len(tokens))
            order = order[window[order].argsort(stable=True)]  # window by window, best first
            inside = torch.arange(len(order), device=order.device) - torch.searchsorted(window[order], window[order])
            local = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
            local[order] = (inside < each) & (grid[order] >= 0).all(-1)
            rank = torch.empty_like(tokens)
            rank[best(deep[tokens], len(tokens))] = torch.arange(len(tokens), device=tokens.device)
            return best(torch.where(local, len(tokens), -rank), keep)

        return per_picture(seen, choose)
