"""Built-in mergers: fold the dropped tokens into the kept ones, then the engine drops as usual."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..seen.prompt import Seen


def nearest(hidden: Float[Tensor, "n d"], kept: Int[Tensor, "k"], seen: Seen) -> Float[Tensor, "n d"]:
    """Average each kept token with the dropped tokens that are most similar to it (cosine)."""
    if not len(kept):
        return hidden
    unit = torch.nn.functional.normalize(hidden.float(), dim=-1)
    home = kept[(unit @ unit[kept].T).argmax(-1)]  # n: the kept token each token goes to
    home[kept] = kept
    total = torch.zeros_like(hidden, dtype=torch.float).index_add(0, home, hidden.float())
    count = torch.zeros(len(hidden), device=hidden.device).index_add(0, home, torch.ones_like(hidden[:, 0]).float())
    return torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], hidden.float()).to(hidden.dtype)
