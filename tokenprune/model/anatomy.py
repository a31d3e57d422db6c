"""What a model is made of, asked once."""

from __future__ import annotations

import inspect
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..parts.adapter import Adapter
from ..parts.attention import Attention, RotaryTables
from ..registry import registry

FULL = "full_attention"
"""The layer type of blocks where each column sees every one up to its own."""

WINDOWS = frozenset({"sliding_attention", "chunked_attention"})
"""Layer types of blocks where a column sees some of those up to its own, as their masks say."""

STATES = frozenset({"linear_attention", "conv"})
"""Layer types of blocks that keep a state instead of columns: what went through them cannot be hidden later."""

ALONE = frozenset({"mlp", "moe"})
"""Layer types of blocks where each column is by itself."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A model's modules, as its adapter names them.

    Attributes:
        model: with its head.
        adapter: of its family.
        base: the module whose forward takes `input_ids` and pictures, and calls the decoder.
        decoder: the text decoder.
        blocks: decoder blocks, first to last.
        kinds: the layer type of each block.
        holders: for each block, the number of the block whose keys and values it reads.
    """

    model: nn.Module
    adapter: Adapter
    base: nn.Module
    decoder: nn.Module
    blocks: tuple[nn.Module, ...]
    kinds: tuple[str, ...]
    holders: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module, adapter: Adapter | None = None) -> Anatomy:
        """`adapter`: by default the one that is registered for the model's type.

        Raises:
            UnsupportedModelError: there is none.
            RegistryError: several plugins have one.
        """
        adapter = registry().adapter(model.config) if adapter is None else adapter
        base = adapter.base(model)
        decoder = adapter.decoder(base)
        blocks, kinds = tuple(adapter.blocks(decoder)), adapter.kinds(decoder)
        return cls(model, adapter, base, decoder, blocks, kinds, adapter.holders(decoder))

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def text(self) -> Any:
        """The decoder's config."""
        return self.decoder.config

    @property
    def depth(self) -> int:
        """Decoder blocks."""
        return len(self.blocks)

    @cached_property
    def base_arguments(self) -> tuple[str, ...]:
        """Of the base's forward, in order."""
        return tuple(inspect.signature(self.base.forward).parameters)

    @cached_property
    def decoder_arguments(self) -> Set[str]:
        """Of the decoder's forward: what is not for pictures."""
        return inspect.signature(self.decoder.forward).parameters.keys()

    def visual(self, ids: Int[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
        """Which columns are placeholders of picture or video tokens."""
        return self.adapter.visual(self.config, ids)

    @property
    def uniform(self) -> bool:
        """Whether all blocks see every column up to their own."""
        return {*self.kinds} == {FULL}

    @cached_property
    def last_layer(self) -> int:
        """The last layer that may drop columns: blocks behind it read keys of blocks before it."""
        shared = [holder for number, holder in enumerate(self.holders) if holder != number]
        return min(shared, default=self.depth - 1)

    def sees_both_ways(self, block: int) -> bool:
        """Whether a block lets every column see every other where it gets no mask."""
        return not all(getattr(part, "is_causal", True) for part in self.blocks[block].modules())

    def attention(self, block: int) -> Attention | None:
        """Of a block, as it is now: projections may have been wrapped since. None where it cannot be read."""
        return self.adapter.attention(self.blocks[block])

    def norm(self, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        """The decoder's final norm."""
        return self.adapter.norm(self.decoder, hidden)

    def rotary(self, hidden: Tensor, positions: Int[Tensor, "b s"], kind: str = FULL) -> RotaryTables | None:
        """Tables for new positions, or None if this family's positions cannot be numbered anew."""
        return self.adapter.rotary(self.decoder, hidden, positions, kind)

    def placeholders(self, device: torch.device) -> Int[Tensor, "m"]:
        """The token ids that stand for pictures."""
        every = torch.arange(self.text.vocab_size, device=device)
        return every[self.visual(every)]
