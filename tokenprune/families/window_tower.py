"""Vision towers that attend in windows: packed patches, in the order of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..parts.vision import Call
from .packed_tower import PackedTower, grids


@dataclass(frozen=True)
class WindowTower(PackedTower):
    """Most blocks see windows of a few tokens; the rows are in the order of these all the way."""

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        from transformers.vision_utils import get_vision_window_index  # recipes are read and explained without it

        order, _ = get_vision_window_index(
            grids(call), tower.spatial_merge_size, tower.window_size, tower.patch_size, kwargs=dict(call[1])
        )
        return super().places(tower, call, projected)[order.to("cpu")]
