"""Random tokens: the baseline of every ablation, and a good choice in deep layers (arXiv 2512.07580)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ... import ops
from ...parts.scorer import Scorer, VisionScorer
from ...seen.pictures import Pictures, Ranking
from ...seen.prompt import Seen


@dataclass(frozen=True)
class Random(Scorer, VisionScorer):
    """Keep random tokens. The draw depends on the prompt's token ids and the seed, not on the batch or the device.

    Two stages with one seed draw nested sets; give them two seeds for independent ones. Inside the vision tower, which
    knows no prompt, the draw depends on the place in the picture and the seed: all pictures lose the same places.
    """

    equivariant = True
    seed: int = 0

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        return ops.hashed_uniform(seen.columns, seen.ids, self.seed)

    def rank(self, pictures: Pictures) -> Ranking:
        tokens = pictures.tokens
        nothing = torch.zeros(1, dtype=torch.long, device=tokens.device)
        return Ranking(ops.hashed_uniform(tokens.flatten(), nothing, self.seed).view(tokens.shape))
