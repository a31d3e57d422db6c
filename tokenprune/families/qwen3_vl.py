"""Qwen3-VL (arXiv 2511.21631): features of the tower's middle are added after the first decoder blocks (deepstack)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.qwen3_vl import TINY
from .grids import packed_boxes
from .packed_tower import PackedTower


class Qwen3VLAdapter(Adapter):
    """`Qwen3VLForConditionalGeneration` and `Qwen3VLMoeForConditionalGeneration`."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return packed_boxes(given)

    def vision_adapter(self) -> PackedTower:
        return PackedTower(deepstack="deepstack_merger_list")
