"""Attention received from a few query rows: FastV (arXiv 2403.06764), PyramidDrop (arXiv 2410.17247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ...parts.scorer import Scorer
from ...seen.prompt import Seen


@dataclass(frozen=True)
class Attention(Scorer):
    """Keep the tokens that get most attention, averaged over heads and query rows.

    Args:
        queries: the prompt's `last` column, all `text` after the last visual token, or a list of columns
            (negative: from the end) among those left.
        block: weights of the `previous` block (FastV), or of the `next` one on its input (PyramidDrop).
    """

    equivariant = True
    queries: Literal["last", "text"] | tuple[int, ...] = "last"
    block: Literal["previous", "next"] = "previous"

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError("queries must be last, text or a list of at least one column, got an empty list")

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        return seen.attention(self.queries, self.block).mean((0, 1))
