"""Aya Vision (arXiv 2505.08751) and Command A Vision: tiles of a picture, then the whole picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from ..parts.attention import Attention
from .cut import Gap, Layout, Size, closed, cut_boxes, factors, nearest
from .forms.cohere2_vision import TINY
from .grid_tower import GridTower
from .grids import tower_grid


class Cohere2VisionAdapter(Adapter):
    """`AyaVisionForConditionalGeneration` and `Cohere2VisionForConditionalGeneration`."""

    model_types = ("aya_vision", "cohere2_vision")
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        config = given.config
        side = tower_grid(config) // config.downsample_factor
        if config.model_type == "aya_vision":
            return {config.image_token_id: cut_boxes(given, side, closed, nearest)}
        return {config.image_token_id: cut_boxes(given, side, _begins, partial(_least_enlarged, config))}

    def attention(self, block: Any) -> Attention | None:
        """Blocks without a window have no RoPE."""
        found = super().attention(block)
        return found if found is None or getattr(block.self_attn, "sliding_window", True) else replace(found, turn=None)

    def vision_adapter(self) -> GridTower:
        return GridTower(side=lambda config: config.downsample_factor)


def _begins(prompt: Sequence[Gap], number: int) -> bool:
    """One mark stands between the tiles of a picture, and more between pictures."""
    return number == 0 or len(prompt[number]) > 1


def _least_enlarged(config: Any, picture: Sequence[Gap], size: Size | None) -> Layout | None:
    """The layout into which the picture fits as it is, or reduced, as exactly as can be."""
    tiles = max(1, len(picture) - 1)
    if size is None and tiles > 1:
        return None
    height, width = size or (1, 1)
    side = config.vision_config.image_size
    scales = {grid: min(grid[0] * side / height, grid[1] * side / width) for grid in factors(tiles)}
    fits = {grid: scale for grid, scale in scales.items() if scale >= 1}
    rows, columns = min(fits, key=fits.__getitem__) if fits else max(scales, key=scales.__getitem__)
    return Layout(rows, columns)
