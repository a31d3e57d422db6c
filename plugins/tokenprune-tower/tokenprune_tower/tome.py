"""ToMe (arXiv 2210.09461): merge the pairs of tokens with the most similar keys."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Pictures, Ranking, VisionScorer, ops


@dataclass(frozen=True)
class ToMe(VisionScorer):
    """Merge tokens into the ones with the most similar keys, by bipartite matching.

    Args:
        proportional: let merged tokens weigh in attention as much as all that they stand for; the vision tower's
            attention must take a mask (sdpa or eager), and Qwen's towers take none.
    """

    proportional: bool = False

    def rank(self, pictures: Pictures) -> Ranking:
        def likeness(keys: Float[Tensor, "u m d"], left: Int[Tensor, "u m"]) -> Float[Tensor, "u a b"]:
            return ops.pair_cosines(keys)

        remove = pictures.sizes.shape[1] - pictures.keep
        return Ranking.folded(ops.fold_pairs(pictures.keys.float(), pictures.sizes, remove, likeness))
