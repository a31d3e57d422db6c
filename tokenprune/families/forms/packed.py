"""Pictures of any resolution as models take them: the patches of all in one row, and the size of each in patches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...parts import tiny

if TYPE_CHECKING:
    from torch import Tensor

VISION: dict[str, Any] = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
"""Sizes of the tiny towers: four patches of 4 x 4, of two frames each, become one token."""

BLOCKS: dict[str, Any] = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
"""Blocks of most of the tiny towers, and the width of their decoder."""


def media(kind: str, seed: int, pairs: int = 2) -> tuple[int, dict[str, Tensor]]:
    """A picture of 16 or 24 tokens, or a video of 8 tokens for each pair of frames."""
    import torch

    grid = (1, 8, 8 + 4 * (seed % 3 > 0)) if kind == "image" else (pairs, 4, 8)
    values, grids = ("pixel_values", "image_grid_thw") if kind == "image" else ("pixel_values_videos", "video_grid_thw")
    patches = math.prod(grid)
    return patches // 4, {values: tiny.normal(seed, patches, 3 * 2 * 4 * 4), grids: torch.tensor([grid])}


def media_of_one_pair(kind: str, seed: int) -> tuple[int, dict[str, Tensor]]:
    """The same for families that want text between the pairs of frames, which prompts of tests do not have."""
    return media(kind, seed, pairs=1)
