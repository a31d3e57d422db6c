"""CDPruner (arXiv 2506.10967): tokens that differ from one another and matter to the question, by a greedy DPP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune import Scorer, Seen, ops
from tokenprune.seen.vision import Block

from .clip import patch_text_cosines
from .pictures import unit

ROUND_OFF = 1e-6


@dataclass(frozen=True)
class CDPruner(Scorer):
    """Greedy MAP of a determinantal point process whose kernel is similarity, conditioned on relevance.

    Args:
        relevance: to the `text` after the picture as the decoder embeds it, or of a CLIP's image to its `clip` text
            (the released code; needs `prune(..., processor=...)` and the CLIP that the tower comes from).
        sign: `negative` takes the negative cosine for relevance, as the released code does; `positive` the paper's.
        clip: the CLIP with the text tower, a folder or a name on a hub; loaded when the first prompt comes.
    """

    relevance: Literal["text", "clip"] = "text"
    sign: Literal["negative", "positive"] = "negative"
    clip: str = "openai/clip-vit-large-patch14-336"

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return ("features",) if self.relevance == "clip" else ()

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        features = unit(seen.hidden)
        cosines = patch_text_cosines(self.clip, seen) if self.relevance == "clip" else self._text(seen, features)
        relevance = rescaled(-cosines if self.sign == "negative" else cosines).to(features)
        return ops.rank_scores(greedy_map(features * relevance[:, None], seen.keep), len(features))

    def _text(self, seen: Seen, features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Mean cosine to the embeddings of the text after the picture, or of all text if there is none."""
        text = torch.ones(len(seen.states), dtype=torch.bool, device=seen.visual.device).index_fill(0, seen.visual, 0)
        asked = seen.states[-seen.question :] if seen.question else seen.states[text]
        return features @ unit(asked).sum(0) / max(1, len(asked))


def rescaled(relevance: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """To [0, 1], as in the released code; ones if all are alike."""
    low, high = relevance.min(), relevance.max()
    return torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1.0)


def greedy_map(rows: Float[Tensor, "n d"], keep: int) -> Int[Tensor, "k"]:
    """Rows in the order in which they add most to the determinant of `rows @ rows.T` (Chen et al., arXiv 1709.05135).

    One Cholesky column per step: O(n^2 d + n k^2) time. Gains that differ by round-off are equal, and the lower row
    comes first; gains within round-off are none at all, so this goes on when no row adds anything any more.
    """
    kernel = rows @ rows.T
    gain = kernel.diagonal().clone()
    slack = ROUND_OFF * gain.max()
    factors = torch.zeros(keep, len(rows), dtype=rows.dtype, device=rows.device)
    picked = torch.empty(keep, dtype=torch.long, device=rows.device)
    for i in range(keep):
        at = (gain >= gain.max().clamp_min(0) - slack).byte().argmax(0, keepdim=True)  # a number would be a sync
        picked[i : i + 1] = at
        own = gain[at]
        column = kernel.index_select(0, at)[0] - factors[:i].index_select(1, at)[:, 0] @ factors[:i]
        factors[i] = torch.where(own > slack, column * own.clamp_min(slack).rsqrt(), 0)
        gain = (gain - factors[i].square()).index_fill(0, at, float("-inf"))
    return picked
