"""Pixtral's vision tower: the patches of all pictures in one row, line by line; squares of them become one token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..parts.vision import BlockRun, Call, TokenRows, VisionAdapter
from ..seen.vision import VisionBlock
from .clip_tower import attention_mask, with_mask
from .packed_tower import narrowed_ends, raster, rotation


@dataclass(frozen=True)
class PixtralTower(VisionAdapter):
    """Pictures of any size, without CLS rows. The projector merges squares of their grids."""

    whole: bool = True

    def towers(self, base: Any) -> list[nn.Module]:
        return [base.vision_tower]

    def projector(self, base: Any) -> nn.Module:
        return base.multi_modal_projector

    def added(self, base: nn.Module) -> None:
        return None

    def blocks(self, tower: Any) -> list[nn.Module]:
        return list(tower.transformer.layers)

    def features(self, config: Any, depth: int) -> int:
        layer = config.vision_feature_layer
        return max(0, (layer if isinstance(layer, int) else layer[-1]) % (depth + 1) - 1)

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        return {"queries": block.attention.q_proj, "keys": block.attention.k_proj}

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        queries, keys = (
            rearrange(run.projected[name], "1 r (heads dh) -> heads r dh", dh=block.attention.head_dim)
            for name in ("queries", "keys")
        )
        lengths, scaling = tuple(_ends(run.call).diff().tolist()), block.attention.scaling
        return VisionBlock(queries, keys, run.output[0], lengths, scaling, cls=False, rotate=rotation(run.call))

    def sources(self, tower: Any, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        return _units(_grids(tower, call), math.isqrt(rows // math.prod(projected)))

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        grids = _grids(tower, call)
        side = math.isqrt(sum(h * w for h, w in grids) // math.prod(projected))
        return raster([(h // side, w // side) for h, w in grids])

    def token_rows(self, config: Any, tower: Any, call: Call, hidden: Float[Tensor, "1 r d"]) -> TokenRows:
        grids, side = _grids(tower, call), config.spatial_merge_size
        return TokenRows(tuple(h * w // side**2 for h, w in grids), side**2, _units(grids, side))

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        args, named = call
        _ends(call)  # blocks that are not told where pictures end cannot be told where what is left of them does
        cos, sin = named["position_embeddings"]
        narrowed: dict[str, Any] = {"position_embeddings": (cos[rows], sin[rows])}
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            if name in named:
                narrowed[name] = narrowed_ends(named[name], len(cos), rows)
        narrower = args, {**named, **narrowed}
        mask = attention_mask(call)
        return narrower if mask is None else with_mask(narrower, mask[..., rows[:, None], rows])


def _grids(tower: Any, call: Call) -> list[tuple[int, int]]:
    """Height and width of each picture in patches."""
    args, named = call
    sizes = torch.as_tensor(named["image_sizes"] if "image_sizes" in named else args[1])
    return [(h // tower.patch_size, w // tower.patch_size) for h, w in sizes.tolist()]


def _units(grids: list[tuple[int, int]], side: int) -> Int[Tensor, "t u"]:
    """The patches of each token: squares of the pictures' grids."""
    firsts = accumulate((h * w for h, w in grids), initial=0)
    patches = [torch.arange(first, first + h * w) for first, (h, w) in zip(firsts, grids, strict=False)]
    return torch.cat(
        [
            rearrange(own, "(h a w b) -> (h w) (a b)", a=side, b=side, w=w // side)
            for own, (_, w) in zip(patches, grids, strict=True)
        ]
    )


def _ends(call: Call) -> Int[Tensor, "c"]:
    """Where pictures end; flash attention is told, and in a mask rows that see each other follow each other."""
    if (mask := attention_mask(call)) is None:
        if "cu_seq_lens_q" not in call[1]:
            raise UnsupportedModelError(
                "under flash attention this transformers does not tell the vision tower's blocks where pictures end: "
                "load the tower with sdpa or eager attention, or install a later transformers"
            )
        return call[1]["cu_seq_lens_q"]
    first = (mask[0, 0] == 0).int().argmax(1)  # that each row sees
    _, counts = torch.unique_consecutive(first, return_counts=True)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
