"""Mergers of the papers: what the dropped tokens leave to the kept ones. Tokens merge inside their own picture only."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Seen

from .pictures import unit

NEIGHBOURS = 32


def contextual(hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
    """Add to each contextual token the mean of the dropped tokens whose tower keys are most like its own.

    VisionZip (arXiv 2412.04467). Contextual are the kept tokens with a negative score, or all if there are none.
    """
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


def neighbours(hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
    """Add to each kept token the 32 tokens whose tower keys are most like its own, weighted by the CLS row's attention.

    PruMerge (arXiv 2403.15388): keys and attention of the last tower block, of all heads joined to one; neighbours may
    be kept or dropped, and weights are not normalised.
    """
    if not len(kept):
        return hidden
    keys, weight = unit(seen.vision.keys(-1, "joined")), seen.vision.salience(-1, "joined")
    picture = seen.vision.places[:, 0]
    likeness = keys[kept] @ keys.T
    alone = torch.arange(len(keys), device=kept.device) == kept[:, None]
    likeness = likeness.masked_fill(alone | (picture != picture[kept, None]), float("-inf"))
    order = likeness.argsort(dim=1, descending=True, stable=True)[:, :NEIGHBOURS]
    precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    near = weight[order].to(precise.dtype) * likeness.gather(1, order).isfinite()
    mixture = torch.zeros_like(likeness, dtype=precise.dtype).scatter(1, order, near)  # k n: no k x 32 x d gather
    return precise.index_add(0, kept, (mixture @ precise).to(precise.dtype)).to(hidden.dtype)


def _homes(
    keys: Float[Tensor, "n dk"], kept: Int[Tensor, "k"], targets: Int[Tensor, "t"], seen: Seen
) -> tuple[Int[Tensor, "n"], Tensor]:
    """The target in the same picture that each token is most like, and whether it goes there: not if kept."""
    picture = seen.vision.places[:, 0]
    likeness = (keys @ keys[targets].T).masked_fill(picture[:, None] != picture[targets], float("-inf"))
    nearest, at = likeness.max(1)
    return targets[at], nearest.isfinite().index_fill(0, kept, False)


contextual.reads_blocks = ("features",)  # type: ignore[attr-defined]
neighbours.reads_blocks = (-1,)  # type: ignore[attr-defined]
neighbours.mixes = True  # type: ignore[attr-defined]
