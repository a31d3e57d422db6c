"""What a scorer may see of the vision tower: its states for the visual tokens of one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .. import ops
from ..amounts import fraction
from ..errors import LayerError, ScorerError

Block = int | str
"""A tower block: counted from the front, from the end (`-1`), at a share of the depth (`"8/24"`: block 8 of 24), or
`"features"`, the one whose output the projector gets.
"""


def check_block(block: Block) -> None:
    """Raise ValueError unless `block` can be one."""
    if isinstance(block, str) and block != "features" and not 0 <= fraction(block) < 1:
        raise ValueError(f"a tower block is a number, a share below 1 such as 8/24, or features, got {block!r}")


def resolve_block(block: Block, depth: int, features: int) -> int:
    """Its number from the front; shares round down. Raises LayerError if the tower does not have it."""
    if block == "features":
        return features
    number = int(fraction(block) * depth) if isinstance(block, str) else block
    if not -depth <= number < depth:
        raise LayerError(f"tower block {block} does not exist: this tower has {depth} blocks, 0 to {depth - 1}")
    return number % depth


@dataclass(frozen=True, eq=False)
class VisionBlock:
    """What one tower block computed for `r` rows: all pictures of a run, one after the other.

    Attributes:
        queries: before RoPE, as are the keys.
        keys: of as many heads.
        features: rows leaving the block.
        lengths: rows of each stretch that attention stays inside of (a picture, a frame or a window), in order.
        scaling: of the attention logits.
        cls: whether each stretch begins with a CLS row.
        rotate: applies RoPE to heads x rows x dh states of all rows.
    """

    queries: Float[Tensor, "H r dh"]
    keys: Float[Tensor, "H r dh"]
    features: Float[Tensor, "r d"]
    lengths: tuple[int, ...]
    scaling: float
    cls: bool
    rotate: Callable[[Tensor], Tensor] = lambda states: states

    @cached_property
    def cls_attention(self) -> Float[Tensor, "r"]:
        """Each stretch's CLS row of attention probabilities, averaged over heads."""
        if not self.cls:
            raise ScorerError("this tower has no CLS row: use its attention received instead (`received`, `salience`)")
        return self._attention("first")

    @cached_property
    def received(self) -> Float[Tensor, "r"]:
        """Probabilities summed over the rows of the stretch, averaged over heads: 1 is an even share."""
        return self._attention("every")

    @property
    def salience(self) -> Float[Tensor, "r"]:
        """`cls_attention` where stretches begin with a CLS row, else `received`."""
        return self.cls_attention if self.cls else self.received

    @cached_property
    def joined(self) -> VisionBlock:
        """The same block as if all heads were one."""
        one = rearrange(torch.stack([self.rotate(self.queries), self.rotate(self.keys)]), "s h r dh -> s 1 r (h dh)")
        return replace(self, queries=one[0], keys=one[1], scaling=one.shape[-1] ** -0.5, rotate=lambda states: states)

    def _attention(self, rows: str) -> Float[Tensor, "r"]:
        asked, keys = self.rotate(self.queries), self.rotate(self.keys)
        return ops.stretch_attention(asked, keys, self.lengths, self.scaling, first_only=rows == "first")


@dataclass(frozen=True, eq=False)
class Vision:
    """The vision tower, seen from the `n` visual tokens of one prompt. All rows are in the order of the tokens.

    Where several tower rows make one token (Qwen's merge units), it has their mean. Tokens that the model adds itself
    (LLaVA-NeXT's newlines) have no tower row: their place is -1, their states and attention are zero.

    Attributes:
        places: picture (or tile, or frame), row and column of each token; -1 for what has no such place, as a CLS.
        read: states by name and block; use the methods.
    """

    places: Int[Tensor, "n 3"]
    read: Callable[[str, Block], Tensor]

    @classmethod
    def of(cls, places: Int[Tensor, "n 3"], **states: Tensor) -> Vision:
        """A tower of plain tensors, whatever the block: for trying a scorer without a model.

        `states`: any of `cls_attention` (n), `received` (n), `keys` (n dk), `features` (n d). Heads, mean or joined,
        are not told apart.
        """

        def read(name: str, block: Block) -> Tensor:
            name = name.removeprefix("joined_")
            if name == "salience":
                name = "cls_attention" if "cls_attention" in states else "received"
            return states[name]

        return cls(places, read)

    def cls_attention(self, block: Block = "features") -> Float[Tensor, "n"]:
        """Attention of the picture's CLS row to each token, averaged over heads. ScorerError in a tower without CLS."""
        return self.read("cls_attention", block)

    def received(self, block: Block = "features") -> Float[Tensor, "n"]:
        """Attention that each token gets from all rows of its picture (or window), averaged over heads; 1 is even."""
        return self.read("received", block)

    def salience(self, block: Block = "features", heads: Literal["mean", "joined"] = "mean") -> Float[Tensor, "n"]:
        """`cls_attention` where the tower has a CLS row, else `received`; mean over heads, or of one joined head."""
        return self.read("salience" if heads == "mean" else "joined_salience", block)

    def keys(self, block: Block = "features", heads: Literal["mean", "joined"] = "mean") -> Float[Tensor, "n dk"]:
        """Keys before RoPE: the mean over heads, or those of all heads side by side as one."""
        return self.read("keys" if heads == "mean" else "joined_keys", block)

    def features(self, block: Block = "features") -> Float[Tensor, "n d"]:
        """Rows leaving the block."""
        return self.read("features", block)

    @cached_property
    def pictures(self) -> Sequence[Int[Tensor, "m"]]:
        """The tokens of each picture, tile or frame; those without a tower row are in none."""
        numbers = sorted({*self.places[:, 0].tolist()} - {-1})
        return [(self.places[:, 0] == number).nonzero()[:, 0] for number in numbers]
