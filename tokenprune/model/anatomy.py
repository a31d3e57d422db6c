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


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A model's modules, as its adapter names them.

    Attributes:
        model: with its head.
        adapter: of its family.
        base: the module whose forward takes `input_ids` and pictures, and calls the decoder.
        decoder: the text decoder.
        blocks: decoder blocks, first to last.
    """

    model: nn.Module
    adapter: Adapter
    base: nn.Module
    decoder: nn.Module
    blocks: tuple[nn.Module, ...]

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
        return cls(model, adapter, base, decoder, tuple(adapter.blocks(decoder)))

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

    def attention(self, block: int) -> Attention:
        """Of a block, as it is now: projections may have been wrapped since."""
        return self.adapter.attention(self.blocks[block])

    def norm(self, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        """The decoder's final norm."""
        return self.adapter.norm(self.decoder, hidden)

    def rotary(self, hidden: Tensor, positions: Int[Tensor, "b s"]) -> RotaryTables | None:
        """Tables for new positions, or None if this family's positions cannot be numbered anew."""
        return self.adapter.rotary(self.decoder, hidden, positions)

    def placeholders(self, device: torch.device) -> Int[Tensor, "m"]:
        """The token ids that stand for pictures."""
        every = torch.arange(self.text.vocab_size, device=device)
        return every[self.visual(every)]
