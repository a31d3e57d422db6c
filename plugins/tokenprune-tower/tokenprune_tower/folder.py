"""FOLDER (arXiv 2501.02430): merge many tokens at once, in one of the last blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Pictures, Ranking, VisionScorer, ops


@dataclass(frozen=True)
class Folder(VisionScorer):
    """Merge tokens into the ones with the most similar keys, over and over in one place; salient ones go last.

    Args:
        alpha: how much salience counts: `100 * alpha` times the share of attention is taken off the similarity. 0
            merges by similarity alone.
    """

    alpha: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be >= 0, got {self.alpha}")

    def rank(self, pictures: Pictures) -> Ranking:
        states = pictures.keys.float()
        if self.alpha:
            share = pictures.salience.float()
            share = share / share.sum(-1, keepdim=True)
            states = torch.cat([states, share[..., None]], -1)  # salience is folded along

        def score(states: Float[Tensor, "u m d"], left: Int[Tensor, "u m"]) -> Float[Tensor, "u a b"]:
            if not self.alpha:
                return ops.pair_cosines(states)
            return ops.pair_cosines(states[..., :-1]) - 100 * self.alpha * states[:, 1::2, -1:]

        remove = pictures.sizes.shape[1] - pictures.keep
        return Ranking.folded(ops.fold_pairs(states, pictures.sizes, remove, score))
