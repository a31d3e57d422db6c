"""EntropyPrune's token score (arXiv 2602.17196, Eq. 7-14)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ... import ops
from ...parts.scorer import Scorer
from ...seen.prompt import Seen


@dataclass(frozen=True)
class Entropy(Scorer):
    """Keep the tokens whose heads say different things: matrix entropy of the head-wise states.

    Args:
        states: query states, or key states (the paper's variant k).
        normalize: `rows` scales each head to unit length (the paper); `none` does not (the authors' released code).
        prefer: `high` keeps the tokens of highest entropy (the paper), `low` those of lowest, for ablations.
        alpha: order of the entropy; 1 is von Neumann (Eq. 4), 2 needs no eigenvalues.
        top_k: use only the largest eigenvalues (Eq. 6); None uses all.
    """

    equivariant = True
    states: Literal["query", "key"] = "query"
    normalize: Literal["rows", "none"] = "rows"
    prefer: Literal["high", "low"] = "high"
    alpha: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.alpha > 0:  # NaN is not
            raise ValueError(f"alpha must be > 0, got {self.alpha}")
        if math.isinf(self.alpha):
            raise ValueError("alpha must be finite, got infinity")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1 or null, got {self.top_k}")

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        states = seen.queries if self.states == "query" else seen.keys
        entropy = ops.token_entropy(states, self.normalize, self.alpha, self.top_k)
        return entropy if self.prefer == "high" else -entropy
