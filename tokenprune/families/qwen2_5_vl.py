"""Qwen2.5-VL (arXiv 2502.13923): any resolution, pictures and videos, M-RoPE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.qwen2_5_vl import PUBLISHED, TINY
from .grids import packed_boxes
from .window_tower import WindowTower


class Qwen2_5VLAdapter(Adapter):
    """`Qwen2_5_VLForConditionalGeneration`. M-RoPE positions are places in a picture: they are never renumbered."""

    model_types = ("qwen2_5_vl",)
    published = (PUBLISHED,)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return packed_boxes(given)

    def vision_adapter(self) -> WindowTower:
        return WindowTower()
