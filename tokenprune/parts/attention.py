"""One decoder block's attention, as far as scores need it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

RotaryTables = Any
"""What a decoder hands to its blocks for RoPE: cos and sin, each `b s dh`, or one such tensor of complex numbers."""


@dataclass(frozen=True, eq=False)
class Attention:
    """One decoder block's attention.

    Attributes:
        modules: `queries`, `keys`, `values` -> the module whose output holds them, heads side by side (tensor parallel:
            this rank's heads).
        size: dh.
        scaling: factor on the logits.
        norm: what rows that enter the block go through before they are projected.
        turn: `turn(states, tables)`, RoPE for states `1 h r dh`; None if this block has none.
        finish: by name, the norm that each head's states (`r heads dh`) go through before RoPE, where there is one.
        gated: whether the second half of what `queries` gives for each head is no query but a gate on its output.
        cap: logits l become `cap * tanh(l / cap)`; None leaves them.
        temper: `temper(positions)`, a factor on the queries there; None for 1.
    """

    modules: Mapping[str, nn.Module]
    size: int
    scaling: float
    norm: Callable[[Tensor], Tensor]
    turn: Callable[[Tensor, RotaryTables], Tensor] | None
    finish: Mapping[str, Callable[[Tensor], Tensor]]
    gated: bool = False
    cap: float | None = None
    temper: Callable[[Int[Tensor, "r"]], Float[Tensor, "r"]] | None = None

    @classmethod
    def of(cls, block: Any) -> Attention | None:
        """As most decoders of transformers have it; None for a block without queries, keys and values of its own."""
        own: Any = getattr(block, "self_attn", None)
        modules: dict[str, Any] = {
            name: getattr(own, f"{name[0]}_proj", None) for name in ("queries", "keys", "values")
        }
        modules["values"] = modules["values"] or modules["keys"]  # one projection for both
        if not all(modules.values()):
            return None
        size, outer = own.head_dim, getattr(own, "o_proj", None)
        norms = {name: _norm(own, name[0]) for name in modules}
        return cls(
            modules=modules,
            size=size,
            scaling=own.scaling,
            norm=getattr(block, "input_layernorm", _as_it_is),
            turn=rotation(sys.modules[type(own).__module__]) if getattr(own, "use_rope", True) else None,
            finish={name: partial(_normed, norm) for name, norm in norms.items() if norm is not None},
            cap=getattr(own, "attn_logit_softcapping", None),
            gated=getattr(modules["queries"], "out_features", 0) == 2 * getattr(outer, "in_features", -1),
        )

    def heads(self, name: str, rows: Float[Tensor, "r w"]) -> Float[Tensor, "heads r dh"]:
        """What `modules[name]` gave for some rows, head by head, as it goes into RoPE."""
        gated = self.gated and name == "queries"
        states = rows.reshape(len(rows), -1, 2 * self.size if gated else self.size)[..., : self.size]
        return self.finish.get(name, _as_it_is)(states).transpose(0, 1)

    def project(self, name: str, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r w"]:
        """What `modules[name]` would give for these rows entering the block."""
        return self.modules[name](self.norm(hidden))

    def rotate(self, states: Float[Tensor, "h r dh"], tables: RotaryTables) -> Float[Tensor, "h r dh"]:
        """RoPE with the tables of these rows, `r dh` each."""
        return states if self.turn is None else self.turn(states[None], of_tables(lambda table: table[None], tables))[0]


def of_tables(function: Callable[[Tensor], Tensor], tables: RotaryTables) -> RotaryTables:
    """The same tables, each with a function applied; None stays None."""
    if isinstance(tables, tuple | list):
        return tuple(of_tables(function, table) for table in tables)
    return tables if tables is None else function(tables)


def rotation(module: Any) -> Callable[[Tensor, RotaryTables], Tensor] | None:
    """The RoPE of a module of transformers' models, whichever way that one is called; None if it has none."""
    function: Any = getattr(module, "apply_rotary_pos_emb", None) or getattr(module, "apply_rotary_emb", None)
    names = list(inspect.signature(function).parameters) if function is not None else []
    if names[1:2] == ["cos"]:
        return lambda states, tables: function(states, *tables)
    if names[2:3] == ["cos"]:
        return lambda states, tables: function(states, states[:, :1], *tables)[0]
    if names[2:3] == ["freqs_cis"]:  # complex numbers, and heads behind rows
        return lambda states, table: function(*[states.transpose(1, 2)] * 2, table)[0].transpose(1, 2)
    return None


def _norm(own: Any, letter: str) -> Any:
    """What an attention's queries, keys or values go through before RoPE; None if they do not."""
    names = (f"{letter}_norm", f"{letter}_layernorm", *(["qk_norm"] if letter in "qk" else []))
    return next((found for name in names if (found := getattr(own, name, None)) is not None), None)


def _normed(norm: Any, states: Float[Tensor, "r heads dh"]) -> Float[Tensor, "r heads dh"]:
    weight = getattr(norm, "weight", None)
    if weight is None or weight.shape[-1] == states.shape[-1]:
        return norm(states)
    return norm(states.flatten(1)).view_as(states)  # of all heads together


def _as_it_is(states: Tensor) -> Tensor:
    return states
