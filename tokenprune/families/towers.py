"""Vision towers: CLIP's pictures with a CLS row, and Qwen's packed windows without one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..seen.vision import VisionBlock


class ClipTower(VisionAdapter):
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


class NextTower(ClipTower):
    """LLaVA-NeXT's: tiles are pictures; what is packed and cropped is found again, newlines are the model's own."""

    newline = "image_newline"


class TwoTowers(ClipTower):
    """Video-LLaVA's: one tower for pictures and one for frames, whose CLS rows are visual tokens too."""

    names = ("image_tower", "video_tower")


class WindowTower(VisionAdapter):
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
