"""Models spread over several processes: what scorers need from the other ranks, and what pruning cannot follow.

Under tensor parallelism every rank runs every block with some of its heads. Scorers see all heads, so the few states
they ask for are gathered. All ranks prune alike, so they come to each of these collectives in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..plan.cost import DecoderSize
from .anatomy import Anatomy

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a model's heads: only this one (`group` None) unless it is tensor parallel."""

    group: Any | None = None
    heads: int = 0
    kv_heads: int = 0

    @classmethod
    def of(cls, model: Any) -> Ranks:
        if (getattr(model, "_tp_size", None) or 1) == 1:
            return cls()
        mesh, sizes = model._device_mesh, DecoderSize.of(model.config)
        group = mesh["tp"].get_group() if "tp" in (mesh.mesh_dim_names or ()) else mesh.get_group()
        return cls(group, sizes.heads, sizes.kv_heads)

    def all_heads(self, name: str, mine: Float[Tensor, "mine r dh"]) -> Float[Tensor, "h r dh"]:
        """Queries, keys or values of every rank's heads, in the model's order."""
        if self.group is None or len(mine) == (self.heads if name == "queries" else self.kv_heads):
            return mine  # under a plan that leaves them whole, too
        mine = mine.detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.group.size())]
        dist.all_gather(parts, mine, group=self.group)
        return torch.cat(parts)

    def same(self, value: T) -> T:
        """The first rank's value: each looks things up in a cache directory of its own."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def agree(self, values: Tensor) -> Tensor:
        """The first rank's values: round-off that differs between devices must not let ranks keep different tokens."""
        if self.group is None:
            return values
        values = values.detach().clone(memory_format=torch.contiguous_format)  # maybe a view of what was shown
        dist.broadcast(values, group=self.group, group_src=0)
        return values


def refuse(anatomy: Anatomy, ranks: Ranks) -> str | None:
    """Why pruning cannot follow how this model is spread over ranks and what to do instead, or None if it can."""
    if getattr(anatomy.model, "_pp_stage", None) is not None:
        return "it is pipeline parallel, so no rank has every block; use device_map or tensor parallelism instead"
    if any("_fsdp_wrapped_module" in part._modules for part in anatomy.model.modules()):
        return "it is wrapped by FSDP1, whose flattened weights cannot be read; use FSDP2 (fsdp_version=2) instead"
    if ranks.group is not None and _broken_heads(anatomy):
        return (
            f"its {ranks.heads} query heads and {ranks.kv_heads} key heads cannot be shared by {ranks.group.size()} "
            "tensor-parallel ranks; use a number of ranks that divides both"
        )
    return None


@torch.no_grad()
def _broken_heads(anatomy: Anatomy) -> bool:
    """Whether this rank holds a part of a head; found by projecting one row of zeros."""
    weight = next(anatomy.blocks[0].parameters())
    row = torch.zeros(1, anatomy.text.hidden_size, dtype=weight.dtype, device=weight.device)
    attention = next((found for b in range(anatomy.depth) if (found := anatomy.attention(b)) is not None), None)
    if attention is None:
        return False
    return any(attention.project(name, row).numel() % attention.size for name in attention.modules)


def check_extra_pass(model: nn.Module, about: str) -> None:
    """Raise if no rank may run a forward pass of its own, because the weights are gathered for it (FSDP2).

    `about`: what the pass would measure, in words.
    """
    if any(hasattr(part, "set_reshard_after_forward") for part in model.modules()):
        raise UnsupportedModelError(
            f"{about} of this model is not known, and FSDP shards its weights, so no rank can run "
            "the extra forward pass that measures it; prune once without FSDP, which remembers the layer, or use a "
            "schedule with a layer of its own, such as fixed"
        )


def whole(weight: Any) -> Tensor:
    """All of a weight, also of one that is sharded over ranks (then every rank must ask)."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
