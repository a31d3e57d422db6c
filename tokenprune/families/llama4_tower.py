"""Llama 4's vision tower: tiles of one size with a CLS row behind their patches, rotated as complex numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..parts.vision import BlockRun, Call
from ..seen.vision import VisionBlock
from .clip_tower import ClipTower, grid_units


@dataclass(frozen=True)
class Llama4Tower(ClipTower):
    """Its states can be read; its blocks share one rotary table for all tiles, so none can lose rows of its own."""

    names: tuple[str, ...] = ("vision_model",)

    def read(self, tower: Any, block: Any, run: BlockRun) -> VisionBlock:
        attention, frequencies = block.self_attn, run.call[1]["freqs_ci"]
        pictures, length = run.output.shape[:2]
        queries, keys = (
            rearrange(run.projected[name], "b l (heads dh) -> heads (b l) dh", dh=attention.head_dim)
            for name in ("queries", "keys")
        )

        def rotate(states: Float[Tensor, "H r dh"]) -> Float[Tensor, "H r dh"]:
            pairs = rearrange(states.float(), "heads (b l) (half two) -> heads b l half two", l=length, two=2)
            turned = torch.view_as_complex(pairs.contiguous()) * frequencies.view(length, -1)
            return torch.view_as_real(turned).flatten(3).flatten(1, 2).to(states.dtype)

        features, scaling = run.output.flatten(0, 1), attention.head_dim**-0.5
        return VisionBlock(queries, keys, features, (length,) * pictures, scaling, cls=False, rotate=rotate)

    def sources(self, tower: Any, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        pictures = rows // tower.num_patches
        one = grid_units(1, tower.num_patches - 1, math.prod(projected) // pictures)
        return (torch.arange(pictures)[:, None, None] * tower.num_patches + one).flatten(0, 1)

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        tokens = round((tower.num_patches - 1) * tower.config.pixel_shuffle_ratio**2)
        return super().places(tower, call, (math.prod(projected) // tokens, tokens))

    def refuse(self, config: Any) -> str | None:
        return "its blocks have one table of positions for all tiles, and different rows would be left of each"
