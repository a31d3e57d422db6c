"""VideoLLaMA 3's vision tower: packed patches, of which each call says how many become one token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import PromptError
from ..parts.vision import BlockRun, Call, TokenRows
from ..seen.vision import VisionBlock
from .packed_tower import PackedTower, rotation


@dataclass(frozen=True)
class MergeSizesTower(PackedTower):
    """SigLIP's blocks over packed rows. Patches are merged by interpolation, after the tower's blocks."""

    whole: bool = True

    def towers(self, base: Any) -> list[nn.Module]:
        return [base.vision_model]

    def projector(self, base: Any) -> nn.Module:
        return base.projector

    def blocks(self, tower: Any) -> list[nn.Module]:
        return list(tower.encoder.layers)

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        return {"queries": block.self_attn.q_proj, "keys": block.self_attn.k_proj}

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        queries, keys = (
            rearrange(run.projected[name], "r (heads dh) -> heads r dh", dh=block.self_attn.head_dim)
            for name in ("queries", "keys")
        )
        lengths, scaling = tuple(run.call[1]["cu_seqlens"].diff().tolist()), block.self_attn.scaling
        return VisionBlock(queries, keys, run.output, lengths, scaling, cls=False, rotate=rotation(run.call))

    def token_rows(self, config: Any, tower: Any, call: Call, hidden: Float[Tensor, "r d"]) -> TokenRows:
        sides = {side for *_, side in self.frames(tower, call)}
        if len(sides) > 1:
            raise PromptError(
                f"passes inside the vision tower want pictures of one merge size, got {sorted(sides)}: "
                "show such pictures in prompts of their own"
            )
        return super().token_rows(config, tower, call, hidden)

    def sources(self, tower: Any, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        """Where merge sizes differ, rows of small tokens are named several times: their means stay what they are."""
        frames = self.frames(tower, call)
        widest = math.lcm(*(side**2 for *_, side in frames))
        parts = torch.split(torch.arange(rows), [h * w for h, w, _ in frames])
        units = [own.view(-1, side**2) for own, (_, _, side) in zip(parts, frames, strict=True)]
        return torch.cat([own.repeat_interleave(widest // own.shape[1], 1) for own in units])

    def frames(self, tower: Any, call: Call) -> list[tuple[int, int, int]]:
        grids, sides = call[1]["grid_thw"].tolist(), call[1]["merge_sizes"].tolist()
        return [(h, w, side) for (t, h, w), side in zip(grids, sides, strict=True) for _ in range(t)]
