"""DART: tokens that repeat others least (arXiv 2502.11494)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune import Scorer, Seen
from tokenprune.ops import rank_scores


@dataclass(frozen=True)
class Dart(Scorer):
    """Keep pivots with large keys, and the tokens least similar to each pivot in turn (arXiv 2502.11494).

    Pivots are the visual tokens, and the tokens of the text after them, whose keys have the largest L1 norm. Visual
    pivots stay; in column order every pivot then takes the tokens of smallest cosine among those left. The budget is
    met exactly: pivots take equally many, the first ones one more if it does not divide.

    Args:
        visual: number of visual pivots.
        text: number of text pivots; fewer if the text is shorter.
    """

    visual: int = 4
    text: int = 4

    def __post_init__(self) -> None:
        if self.visual < 1 or self.text < 0:
            raise ValueError(f"DART needs visual pivots >= 1 and text pivots >= 0, got {self.visual} and {self.text}")

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        n = len(seen.visual)
        size = seen.rotated_keys.float().abs().sum((0, 2))  # h p dh -> p
        seeds = _largest(size[seen.visual], min(self.visual, seen.keep))
        words = (
            seen.words[_largest(size[seen.words], min(self.text, seen.question))] if seen.question else seen.words[:0]
        )
        unit = torch.nn.functional.normalize(seen.normed.float(), dim=-1)
        pivots = torch.cat([seen.visual[seeds], words])
        likeness = unit[pivots] @ unit[seen.visual].T  # pivots x n
        likeness[:, seeds] = float("inf")
        order, left = [seeds], seen.keep - len(seeds)
        for i, row in enumerate(likeness):
            share = (left + len(pivots) - i - 1) // (len(pivots) - i)
            picked = row.argsort(stable=True)[:share]
            likeness[:, picked] = float("inf")
            order, left = [*order, picked], left - share
        return rank_scores(torch.cat(order), n)


def _largest(size: Float[Tensor, "m"], count: int) -> Tensor:
    """Places of the largest in ascending order; ties go to the lower one."""
    return size.argsort(descending=True, stable=True)[:count].sort().values
