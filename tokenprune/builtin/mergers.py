"""Built-in mergers: fold the dropped tokens into the kept ones, which are then gathered as usual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..parts.merger import Merger
from ..seen.prompt import Seen


@dataclass(frozen=True)
class Nearest(Merger):
    """Average each kept token with the dropped tokens that are most similar to it (cosine)."""

    def merge(self, hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
        if not len(kept):
            return hidden
        unit = torch.nn.functional.normalize(hidden.float(), dim=-1)
        home = kept[(unit @ unit[kept].T).argmax(-1)]  # n: the kept token each token goes to
        home[kept] = kept
        total = torch.zeros_like(hidden, dtype=torch.float).index_add(0, home, hidden.float())
        count = torch.zeros(len(hidden), device=hidden.device).index_add(0, home, torch.ones_like(hidden[:, 0]).float())
        mean = total / count.clamp_min(1)[:, None]
        return torch.where(count[:, None] > 0, mean, hidden.float()).to(hidden.dtype)
