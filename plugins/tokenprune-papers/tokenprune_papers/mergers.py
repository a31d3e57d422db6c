"""Mergers of the papers: what the dropped tokens leave to the kept ones. Tokens merge inside their own picture only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Merger, Seen
from tokenprune.seen.vision import Block

from .pictures import unit


@dataclass(frozen=True)
class Contextual(Merger):
    """Add to each contextual token the mean of the dropped tokens whose tower keys are most like its own.

    VisionZip (arXiv 2412.04467). Contextual are the kept tokens with a negative score, or all if there are none.
    """

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return ("features",)

    def merge(self, hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
        if not len(kept):
            return hidden
        chosen = kept if seen.scores is None else kept[seen.scores[kept] < 0]
        targets = chosen if len(chosen) else kept
        home, found = _homes(unit(seen.vision.keys()), kept, targets, seen)
        precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        weight = found.to(precise.dtype)
        total = torch.zeros_like(precise).index_add(0, home, precise * weight[:, None])
        count = torch.zeros_like(weight).index_add(0, home, weight)
        return (precise + total / count.clamp_min(1)[:, None]).to(hidden.dtype)


@dataclass(frozen=True)
class Neighbours(Merger):
    """Add to each kept token those whose tower keys are most like its own, weighted by the CLS row's attention.

    PruMerge (arXiv 2403.15388): keys and attention of the last tower block, of all heads joined to one; neighbours may
    be kept or dropped, and weights are not normalised.

    Args:
        count: neighbours of each.
    """

    mixes = True
    count: int = 32

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return (-1,)

    def merge(self, hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
        if not len(kept):
            return hidden
        keys, weight = unit(seen.vision.keys(-1, "joined")), seen.vision.salience(-1, "joined")
        picture = seen.vision.places[:, 0]
        likeness = keys[kept] @ keys.T
        alone = torch.arange(len(keys), device=kept.device) == kept[:, None]
        likeness = likeness.masked_fill(alone | (picture != picture[kept, None]), float("-inf"))
        order = likeness.argsort(dim=1, descending=True, stable=True)[:, : self.count]
        precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        near = weight[order].to(precise.dtype) * likeness.gather(1, order).isfinite()
        mixture = torch.zeros_like(likeness, dtype=precise.dtype).scatter(1, order, near)  # k n: nothing is gathered
        return precise.index_add(0, kept, (mixture @ precise).to(precise.dtype)).to(hidden.dtype)


def _homes(
    keys: Float[Tensor, "n dk"], kept: Int[Tensor, "k"], targets: Int[Tensor, "t"], seen: Seen
) -> tuple[Int[Tensor, "n"], Tensor]:
    """The target in the same picture that each token is most like, and whether it goes there: not if kept."""
    picture = seen.vision.places[:, 0]
    likeness = (keys @ keys[targets].T).masked_fill(picture[:, None] != picture[targets], float("-inf"))
    nearest, at = likeness.max(1)
    return targets[at], nearest.isfinite().index_fill(0, kept, False)
