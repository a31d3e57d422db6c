"""Any vision-language model of transformers that is laid out as most are: what nobody wrote a file for."""

from __future__ import annotations

from torch import nn

from ..parts.adapter import Adapter
from ..parts.attention import Attention


class Standard(Adapter):
    """The defaults, which ask the model. `tokenprune.verify` checks that they hold before it is trusted."""

    model_types = ()

    def __init__(self, reads_attention: bool = True, checked: bool = True) -> None:
        self.reads_attention = reads_attention
        """Whether what the defaults say of queries and keys is true of this model."""
        self.checked = checked
        """Whether a check has shown that they hold; else somebody trusts them."""

    def attention(self, block: nn.Module) -> Attention | None:
        return super().attention(block) if self.reads_attention else None
