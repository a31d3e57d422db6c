"""Vision towers laid out like CLIP's: pictures of one size side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..seen.vision import VisionBlock


@dataclass(frozen=True)
class ClipTower(VisionAdapter):
    """Pictures of equal size, one row per patch, a CLS row in front (none in SigLIP's).

    Tiles and frames are pictures too: how the model packs and crops their rows later is not asked here.

    Attributes:
        names: attributes of the base model that hold towers.
        newline: attribute of the base model with a row that it puts between the pictures' rows.
    """

    names: tuple[str, ...] = ("vision_tower",)
    newline: str | None = None

    def towers(self, base: nn.Module) -> list[nn.Module]:
        return [getattr(base, name) for name in self.names]

    def projector(self, base: nn.Module) -> nn.Module:
        return base.multi_modal_projector  # type: ignore[return-value]

    def added(self, base: nn.Module) -> Float[Tensor, "m d"] | None:
        return None if self.newline is None else getattr(base, self.newline).detach()[None]

    def blocks(self, tower: nn.Module) -> list[nn.Module]:
        for part in tower.modules():
            if isinstance(part, nn.ModuleList) and hasattr(part[0], "self_attn"):
                return list(part)
        raise UnsupportedModelError(
            f"the states of a {type(tower).__name__} cannot be read: its blocks are not laid out like CLIP's"
        )

    def features(self, config: Any, depth: int) -> int:
        layer = config.vision_feature_layer  # of hidden_states: before block 0, after block 0, ...
        layer = layer if isinstance(layer, int) else layer[-1]
        return max(0, layer % (depth + 1) - 1)

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        return {"queries": block.self_attn.q_proj, "keys": block.self_attn.k_proj}

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        def heads(flat: Float[Tensor, "b l w"]) -> Float[Tensor, "H r dh"]:
            return rearrange(flat, "b l (heads dh) -> heads (b l) dh", dh=block.self_attn.head_dim)

        pictures, length = run.output.shape[:2]
        return VisionBlock(
            queries=heads(run.projected["queries"]),
            keys=heads(run.projected["keys"]),
            features=run.output.flatten(0, 1),
            lengths=(length,) * pictures,
            scaling=block.self_attn.scale,
            cls=_begins_with_cls(tower),
        )

    def sources(self, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m 1"]:
        pictures, patches = projected[:2]
        length = rows // pictures  # with the CLS row, which the projector may not get
        return (torch.arange(pictures)[:, None] * length + torch.arange(length - patches, length)).reshape(-1, 1)

    def places(self, tower: nn.Module, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        pictures, patches = projected[:2]
        side = math.isqrt(patches)
        cell = torch.arange(patches) - (patches - side * side)
        row = torch.where(cell < 0, -1, cell // side)
        column = torch.where(cell < 0, -1, cell % side)
        grid = torch.stack([torch.zeros_like(cell), row, column], -1).repeat(pictures, 1, 1)
        grid[..., 0] = torch.arange(pictures)[:, None]
        return grid.flatten(0, 1)

    def pictures(self, tower: nn.Module, call: Call, hidden: Float[Tensor, "b l d"]) -> tuple[tuple[int, ...], int]:
        return (hidden.shape[1] - _begins_with_cls(tower),) * len(hidden), 1

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        return call  # nothing in it is of rows

    def weigh(self, block: Any, call: Call, sizes: Float[Tensor, "b l"]) -> Call:
        used = block.self_attn.config._attn_implementation
        if used not in ("sdpa", "eager"):
            raise UnsupportedModelError(
                f"proportional attention needs a mask that is added to the logits, which {used} does not take: set "
                "proportional=false, or load the vision tower with sdpa"
            )
        args, named = call
        mask = sizes.log()[:, None, None]  # b 1 1 l
        if "attention_mask" in named:
            return args, {**named, "attention_mask": mask}
        return (args[0], mask, *args[2:]), named

    def refuse(self, config: Any) -> str | None:
        if not isinstance(config.vision_feature_layer, int):
            return f"the projector gets the rows of several blocks, vision_feature_layer {config.vision_feature_layer}"
        return None


def _begins_with_cls(tower: nn.Module) -> bool:
    return any(name.endswith("class_embedding") for name, _ in tower.named_parameters())
