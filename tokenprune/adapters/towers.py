"""Vision towers: CLIP's pictures with a CLS row, and Qwen's packed windows without one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from ..errors import UnsupportedModelError
from ..interfaces import BlockRun, Call, TowerAdapter
from ..tower import TowerBlock


class ClipTower(TowerAdapter):
    """Pictures of equal size, one row per patch, a CLS row in front (none in SigLIP's)."""

    names: tuple[str, ...] = ("vision_tower",)
    """Attributes of the base model that hold towers."""

    newline: str | None = None
    """Attribute of the base model with a row that it puts between the pictures' rows."""

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

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> TowerBlock:
        def heads(flat: Float[Tensor, "b l w"]) -> Float[Tensor, "H r dh"]:
            return rearrange(flat, "b l (heads dh) -> heads (b l) dh", dh=block.self_attn.head_dim)

        pictures, length = run.output.shape[:2]
        return TowerBlock(
            queries=heads(run.projected["queries"]),
            keys=heads(run.projected["keys"]),
            features=run.output.flatten(0, 1),
            lengths=(length,) * pictures,
            scaling=block.self_attn.scale,
            cls=any(name.endswith("class_embedding") for name, _ in tower.named_parameters()),
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


class NextTower(ClipTower):
    """LLaVA-NeXT's: tiles are pictures; what is packed and cropped is found again, newlines are the model's own."""

    newline = "image_newline"


class TwoTowers(ClipTower):
    """Video-LLaVA's: one tower for pictures and one for frames, whose CLS rows are visual tokens too."""

    names = ("image_tower", "video_tower")


class WindowTower(TowerAdapter):
    """Qwen2.5-VL's: patches of all pictures in one row, in the order of windows; units of 2 x 2 become one token."""

    def towers(self, base: Any) -> list[nn.Module]:
        return [base.visual]

    def projector(self, base: Any) -> nn.Module:
        return base.visual.merger

    def added(self, base: nn.Module) -> None:
        return None

    def blocks(self, tower: Any) -> list[nn.Module]:
        return list(tower.blocks)

    def features(self, config: Any, depth: int) -> int:
        return depth - 1

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        return {"all": block.attn.qkv}

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> TowerBlock:
        queries, keys, _ = rearrange(
            run.projected["all"], "r (three heads dh) -> three heads r dh", three=3, heads=block.attn.num_heads
        )
        cos, sin = run.call[1]["position_embeddings"]

        def rotate(states: Float[Tensor, "H r dh"]) -> Float[Tensor, "H r dh"]:
            precise = states.to(torch.promote_types(states.dtype, torch.float32))
            first, second = precise.chunk(2, dim=-1)
            return (precise * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)

        lengths = run.call[1]["cu_seqlens"].diff().tolist()
        return TowerBlock(queries, keys, run.output, tuple(lengths), block.attn.scaling, cls=False, rotate=rotate)

    def sources(self, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        return torch.arange(rows).reshape(projected[0], -1)

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        args, named = call
        grids = named["grid_thw"] if "grid_thw" in named else args[1]
        size = tower.spatial_merge_size
        order, _ = get_vision_window_index(grids, size, tower.window_size, tower.patch_size, kwargs=dict(named))
        frames = [grid for t, *grid in grids.tolist() for _ in range(t)]
        raster = [torch.cartesian_prod(*map(torch.arange, (h // size, w // size))) for h, w in frames]
        numbered = [torch.cat([torch.full((len(part), 1), i), part], 1) for i, part in enumerate(raster)]
        return torch.cat(numbered)[order.to("cpu")]
