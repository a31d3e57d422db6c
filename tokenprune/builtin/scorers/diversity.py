"""DivPrune's greedy max-min selection (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ... import ops
from ...parts.scorer import Scorer
from ...seen.prompt import Seen


@dataclass(frozen=True)
class Diversity(Scorer):
    """Keep the tokens that lie farthest apart: each pick has the largest cosine distance to those before it."""

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        return ops.rank_scores(ops.farthest_first(seen.hidden, seen.keep), len(seen.visual))
