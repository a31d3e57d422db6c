"""One decoder block's attention, as far as scores need it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

RotaryTables = tuple[Tensor, Tensor]
"""cos and sin, each `b s dh`."""


@dataclass(frozen=True, eq=False)
class Attention:
    """One decoder block's attention.

    Attributes:
        modules: `queries`, `keys`, `values` -> the module whose output holds them before RoPE, heads side by side or
            on an axis of their own (tensor parallel: this rank's heads).
        size: dh.
        scaling: factor on the logits.
        norm: what rows that enter the block go through before they are projected.
        rotation: `rotation(queries, keys, cos, sin)`, the attention's own `apply_rotary_pos_emb`.
    """

    modules: Mapping[str, nn.Module]
    size: int
    scaling: float
    norm: Callable[[Tensor], Tensor]
    rotation: Callable[..., tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, block: Any) -> Attention:
        """As Llama's blocks have it, and most others of transformers."""
        own = block.self_attn
        return cls(
            modules={"queries": own.q_proj, "keys": own.k_proj, "values": own.v_proj},
            size=own.head_dim,
            scaling=own.scaling,
            norm=block.input_layernorm,
            rotation=sys.modules[type(own).__module__].apply_rotary_pos_emb,
        )

    def heads(self, rows: Float[Tensor, "r *w"]) -> Float[Tensor, "heads r dh"]:
        """What a module gave for some rows, head by head."""
        return rows.reshape(len(rows), -1, self.size).transpose(0, 1)

    def project(self, name: str, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r w"]:
        """What `modules[name]` would give for these rows entering the block."""
        return self.modules[name](self.norm(hidden))

    def rotate(
        self, states: Float[Tensor, "h r dh"], cos: Float[Tensor, "r dh"], sin: Float[Tensor, "r dh"]
    ) -> Float[Tensor, "h r dh"]:
        """RoPE with the tables of these rows."""
        batch = states[None]
        return self.rotation(batch, batch[:, :1], cos[None], sin[None])[0][0]
