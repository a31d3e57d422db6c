"""EvoPrune (arXiv 2603.03681): merge a few tokens after many blocks, by similarity, diversity and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from tokenprune import Pictures, Ranking, VisionScorer, ops


@dataclass(frozen=True)
class EvoPrune(VisionScorer):
    """Merge tokens that are alike and stand among their like; those that get much attention are left alone.

    The paper gives no values for `neighbours`, `tau` and `diversity`, nor does it say which states are compared.

    Args:
        states: what tokens are compared by: rows between the blocks, or keys.
        protect: share of the tokens, those with the most attention, that stay as they are (the paper's CTR).
        diversity: weight of a pair's diversity, lambda_d; 0 leaves it out.
        neighbours: K, of which a token's diversity is the mean.
        tau: distance, between rows of length one, at which likeness has fallen to 1/e.
    """

    states: Literal["hidden", "keys"] = "hidden"
    protect: float = 0.25
    diversity: float = 1.0
    neighbours: int = 5
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.protect <= 1 and self.diversity >= 0 and self.neighbours >= 1 and self.tau > 0):
            raise ValueError(
                "expected protect in [0, 1], diversity >= 0, neighbours >= 1 and tau > 0, got "
                f"{self.protect}, {self.diversity}, {self.neighbours} and {self.tau}"
            )

    def rank(self, pictures: Pictures) -> Ranking:
        states: Tensor = getattr(pictures, self.states).float()
        if self.protect:
            states = torch.cat([states, pictures.received.float()[..., None]], -1)  # attention is folded along

        def score(states: Float[Tensor, "u m d"], left: Tensor) -> Float[Tensor, "u a b"]:
            features, attention = (states[..., :-1], states[..., -1]) if self.protect else (states, None)
            tokens = features.shape[1]
            pairs = self._weighted(normalize(features, dim=-1))
            safe = min(int(self.protect * tokens), tokens - 2 * (tokens - pictures.keep))
            if attention is None or safe <= 0:
                return pairs
            marked = torch.zeros_like(attention).scatter(1, attention.topk(safe).indices, 1.0)
            # What is protected goes last, and is gone into only where nothing else is there: no -inf, which would tie.
            return pairs - 8 * (marked[:, 1::2, None] + marked[:, None, 0::2])

        remove = pictures.sizes.shape[1] - pictures.keep
        return Ranking.folded(ops.fold_pairs(states, pictures.sizes, remove, score))

    def _weighted(self, unit: Float[Tensor, "u m d"]) -> Float[Tensor, "u a b"]:
        """Similarity in [0, 1] times the diversity weight, of every pair."""
        if not self.diversity or unit.shape[1] <= 1:
            return (1 + unit[:, 1::2] @ unit[:, 0::2].mT) / 2
        cosine = unit @ unit.mT
        near = cosine.diagonal_scatter(torch.full_like(cosine[:, :, 0], -torch.inf), 0, 1, 2)
        near = near.topk(min(self.neighbours, unit.shape[1] - 1), sorted=False).values
        apart = 1 - ((near - 1) * (2 / self.tau**2)).exp().mean(-1)  # |v_i - v_k|^2 = 2 - 2 cos
        weight = (-self.diversity * apart).exp()
        return (1 + cosine[:, 1::2, 0::2]) / 2 * weight[:, 1::2, None] * weight[:, None, 0::2]
