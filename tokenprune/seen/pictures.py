"""What a pass inside the vision tower sees: the pictures that run through it, and what its scorer says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScorerError


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a pass inside the tower sees: `u` pictures, tiles or frames of `n` tokens each, read lazily.

    All are of one size; pictures of other sizes come in a call of their own. Where several rows make one token (Qwen's
    merge units), it has their mean. A CLS row is no token: it always stays.

    Attributes:
        layer: tower blocks that already ran.
        keep: how many of the n tokens of each picture will stay.
        tokens: number of each token in its picture, as it came into the tower.
        sizes: how many of them each stands for: 1 until tokens are merged.
        hidden: rows entering block `layer`.
        read: states of block `layer - 1` by name; None before the first block. Use the properties.
        look: row and column of each token that came into the tower.
    """

    layer: int
    keep: int
    tokens: Int[Tensor, "u n"]
    sizes: Float[Tensor, "u n"]
    hidden: Float[Tensor, "u n d"]
    read: Callable[[str], Tensor] | None = None
    look: Callable[[], Tensor] | None = None

    @classmethod
    def of(cls, keep: int, hidden: Float[Tensor, "u n d"], **states: Tensor) -> Pictures:
        """Pictures of plain tensors: for trying a scorer without a model.

        `states`: any of `keys` (u n dk), `received` (u n), `cls_attention` (u n), `salience` (u n).
        """
        tokens = torch.arange(hidden.shape[1]).expand(hidden.shape[:2])
        return cls(1, keep, tokens, torch.ones(hidden.shape[:2]), hidden, states.__getitem__)

    @cached_property
    def keys(self) -> Float[Tensor, "u n dk"]:
        """Keys of the last block, before RoPE, averaged over heads."""
        return self._states("keys")

    @cached_property
    def received(self) -> Float[Tensor, "u n"]:
        """Attention that each token got in the last block from all rows of its picture (or window), mean over heads.

        1 is an even share. The map is computed again, a part at a time: it costs about as much as attention does.
        """
        return self._states("received")

    @cached_property
    def cls_attention(self) -> Float[Tensor, "u n"]:
        """Attention of the CLS row to each token in the last block, averaged over heads. ScorerError without CLS."""
        return self._states("cls_attention")

    @cached_property
    def salience(self) -> Float[Tensor, "u n"]:
        """`cls_attention` where the tower has a CLS row, else `received`."""
        return self._states("salience")

    @cached_property
    def places(self) -> Int[Tensor, "u n 2"]:
        """Row and column of each token in its picture's grid."""
        if self.look is None:
            raise ScorerError("these pictures have no grid: give them look=lambda: rows and columns")
        return self.look()

    def _states(self, name: str) -> Tensor:
        if self.read is None:
            raise ScorerError(
                f"before the first block of the tower there are no {name}: prune at layer 1 or later, or use a scorer "
                "of hidden states"
            )
        return self.read(name)


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a scorer says of pictures inside the tower.

    Attributes:
        scores: of each picture the `keep` highest tokens stay, ties go to the lower place.
        into: the token that each one would be merged into (its place among the n); None leaves that to the pass, which
            takes the kept token with the most similar rows. What is dropped must go into something kept.
    """

    scores: Float[Tensor, "u n"]
    into: Int[Tensor, "u n"] | None = None

    @classmethod
    def folded(cls, into: Int[Tensor, "u n"]) -> Ranking:
        """Of tokens that are merged (`ops.fold_pairs`): whatever goes into itself stays."""
        return cls((into == torch.arange(into.shape[1], device=into.device)).float(), into)
