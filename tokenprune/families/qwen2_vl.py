"""Qwen2-VL (arXiv 2409.12191): any resolution, pictures and videos, M-RoPE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.qwen2_vl import TINY
from .grids import packed_boxes
from .packed_tower import PackedTower


class Qwen2VLAdapter(Adapter):
    """`Qwen2VLForConditionalGeneration`."""

    model_types = ("qwen2_vl",)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return packed_boxes(given)

    def vision_adapter(self) -> PackedTower:
        return PackedTower()
