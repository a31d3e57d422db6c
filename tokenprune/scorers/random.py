"""Random tokens: the baseline of every ablation, and a good choice in deep layers (arXiv 2512.07580)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .. import ops
from ..interfaces import Scorer
from ..values import Seen


@dataclass(frozen=True)
class Random(Scorer):
    """Keep random tokens. The draw depends on the prompt's token ids and the seed, not on the batch or the device.

    Two stages with one seed draw nested sets; give them two seeds for independent ones.
    """

    equivariant = True
    seed: int = 0

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        return ops.hashed_uniform(seen.columns, seen.ids, self.seed)
