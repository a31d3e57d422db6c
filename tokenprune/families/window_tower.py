"""Vision towers that attend in windows: the patches of all pictures in one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..parts.vision import BlockRun, Call, VisionAdapter
from ..seen.vision import VisionBlock


class WindowTower(VisionAdapter):
    """Patches of all pictures in one row, in the order of windows; units of 2 x 2 become one token. No CLS row."""

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

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        queries, keys, _ = rearrange(
            run.projected["all"], "r (three heads dh) -> three heads r dh", three=3, heads=block.attn.num_heads
        )
        cos, sin = run.call[1]["position_embeddings"]

        def rotate(states: Float[Tensor, "H r dh"]) -> Float[Tensor, "H r dh"]:
            precise = states.to(torch.promote_types(states.dtype, torch.float32))
            first, second = precise.chunk(2, dim=-1)
            return (precise * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)

        lengths = run.call[1]["cu_seqlens"].diff().tolist()
        return VisionBlock(queries, keys, run.output, tuple(lengths), block.attn.scaling, cls=False, rotate=rotate)

    def sources(self, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        return torch.arange(rows).reshape(projected[0], -1)

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        from transformers.vision_utils import get_vision_window_index  # recipes are read and explained without it

        grids, size = _grids(call), tower.spatial_merge_size
        order, _ = get_vision_window_index(grids, size, tower.window_size, tower.patch_size, kwargs=dict(call[1]))
        frames = [grid for t, *grid in grids.tolist() for _ in range(t)]
        raster = [torch.cartesian_prod(*map(torch.arange, (h // size, w // size))) for h, w in frames]
        numbered = [torch.cat([torch.full((len(part), 1), i), part], 1) for i, part in enumerate(raster)]
        return torch.cat(numbered)[order.to("cpu")]

    def pictures(self, tower: Any, call: Call, hidden: Float[Tensor, "r d"]) -> tuple[tuple[int, ...], int]:
        unit = tower.spatial_merge_size**2
        return tuple(h * w // unit for t, h, w in _grids(call).tolist() for _ in range(t)), unit

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        args, named = call
        cos, sin = named["position_embeddings"]
        ends = named["cu_seqlens"]
        earlier = torch.zeros(len(cos) + 1, dtype=ends.dtype, device=ends.device).index_fill(0, rows + 1, 1).cumsum(0)
        narrowed = {
            "position_embeddings": (cos[rows], sin[rows]),
            # windows may have become empty; the lengths are a sync, as sdpa's own are
            "cu_seqlens": torch.unique_consecutive(earlier.to(ends.dtype)[ends.long()]),
        }
        return args, {**named, **narrowed}


def _grids(call: Call) -> Int[Tensor, "m 3"]:
    args, named = call
    grids: Tensor = named["grid_thw"] if "grid_thw" in named else args[1]
    return grids
