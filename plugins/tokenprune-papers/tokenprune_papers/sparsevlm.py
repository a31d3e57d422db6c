"""SparseVLM: the words that the picture speaks to say which of its tokens stay (arXiv 2410.04417)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Merger, Scorer, Seen
from tokenprune.ops import rank_scores

ROWS = 256  # text rows at once: their attention over all columns is in memory


@dataclass(frozen=True)
class SparseVLM(Scorer):
    """Keep the tokens that the raters attend to: words nearer to the picture than average (arXiv 2410.04417).

    Args:
        recycle: `seen.keep` includes the centres of the clusters that `merge: recycle` makes of dropped tokens.
        heads: average only the heads with most attention from raters to the picture; null averages all.
        unbias: divide attention by what RoPE alone gives to equal queries and keys (SparseVLM+).
    """

    recycle: bool = True
    heads: int | None = None
    unbias: bool = False

    def __post_init__(self) -> None:
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads must be >= 1 or null, got {self.heads}")

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        rating = self._rating(seen)
        if not self.recycle or not seen.keep:
            return rating
        order, best = rating.argsort(descending=True, stable=True), best_of(len(rating), seen.keep)
        pool = order[best : best + _pool(len(rating) - best)].sort().values
        centres = pool[density_peaks(_gaps(seen.hidden[pool]), seen.keep - best)]
        return rank_scores(order, len(order)).index_fill(0, centres, 0.5 - best)  # after the best, before the others

    def _rating(self, seen: Seen) -> Float[Tensor, "n"]:
        rows = seen.words
        weights = raters(seen.embeddings[seen.shown].float(), seen.embeddings[-len(rows) :].float())
        total = torch.zeros((), device=rows.device)
        for some, weight in zip(rows.split(ROWS), weights.split(ROWS), strict=True):
            attention = seen.attention(some)
            attention = attention / rope_bias(seen, some) if self.unbias else attention
            by_token = rearrange(attention, "H r n -> n H r").contiguous()  # so that equal tokens have equal sums
            total = total + (by_token * weight).sum(-1)
        received = total / weights.sum()  # n H
        if self.heads is not None:
            received = received[:, received.sum(0).argsort(descending=True, stable=True)[: self.heads]].contiguous()
        return received.mean(-1)


def raters(visual: Float[Tensor, "m d"], words: Float[Tensor, "t d"]) -> Float[Tensor, "t"]:
    """1 for every word more relevant to the visual tokens than the mean word, 0 for others; all 1 if all are alike."""
    relevance = (visual @ words.T).softmax(-1).nanmean(0)  # a tower may have left holes
    above = relevance > relevance.mean()
    return (above | ~above.any()).float()


def rope_bias(seen: Seen, rows: Int[Tensor, "r"]) -> Float[Tensor, "r n"]:
    """Attention logits that queries and keys of ones would have: RoPE alone."""
    size = seen.keys.shape[-1]
    ones = torch.ones(1, 1, size, device=rows.device)
    asked, keys = (seen.rotate(ones.expand(1, len(at), size), at)[0] for at in (rows, seen.visual))
    return asked.float() @ keys.float().T / size**0.5


def _pool(dropped: int) -> int:
    """How many of the dropped tokens are recycled: the best 30 %."""
    return int(dropped * 0.3) + 1


def _clusters(dropped: int) -> int:
    return int(_pool(dropped) / 10) + 1


def best_of(n: int, keep: int) -> int:
    """How many of `keep` are the best tokens, so that the clusters of what is dropped are the rest."""
    return max(bisect_right(range(keep), keep, key=lambda best: best + _clusters(n - best)) - 1, 0)


def _gaps(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    """Mean squared differences of all pairs."""
    gram = rows.float() @ rows.float().T
    own = gram.diagonal()
    return ((own[:, None] + own - 2 * gram).clamp_min(0) / rows.shape[1]).fill_diagonal_(0)


def density_peaks(gaps: Float[Tensor, "m m"], count: int) -> Int[Tensor, "c"]:
    """Centres of DPC-kNN, ascending: rows that are dense and far from denser ones.

    The released code breaks ties of density by noise; here the lower row is the denser one. Density and distance are
    multiplied as logarithms, which do not underflow.
    """
    sparsity = gaps.sort(-1).values[:, :count].mean(-1)
    row = torch.arange(len(gaps), device=gaps.device)
    denser = (sparsity < sparsity[:, None]) | ((sparsity == sparsity[:, None]) & (row < row[:, None]))
    apart = gaps.where(denser, gaps.max()).amin(-1)
    return (apart.log() / 2 - sparsity).argsort(descending=True, stable=True)[:count].sort().values


@dataclass(frozen=True)
class Recycle(Merger):
    """Write the plain mean of each of scorer `sparsevlm`'s clusters into its centre.

    Its scores tell: first come the best tokens, then the centres, then the others that are recycled.
    """

    def merge(self, hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
        n, keep = len(hidden), len(kept)
        if not keep or seen.scores is None:
            return hidden
        order, best = seen.scores.argsort(descending=True, stable=True), best_of(n, keep)
        centres, pool = order[best:keep].sort().values, order[best : best + _pool(n - best)].sort().values
        rows = hidden.float()
        home = centres[_gaps(torch.cat([rows[centres], rows[pool]]))[keep - best :, : keep - best].argmin(-1)]
        home = torch.where(torch.isin(pool, centres), pool, home)  # a centre is its own, whatever lies on it
        total = torch.zeros_like(rows).index_add(0, home, rows[pool])
        count = torch.zeros(n, 1, device=rows.device).index_add(0, home, torch.ones(len(home), 1, device=rows.device))
        return torch.where(count > 0, total / count.clamp_min(1), rows).to(hidden.dtype)
