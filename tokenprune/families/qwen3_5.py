"""Qwen3.5 and Qwen3.6: most decoder blocks are linear; pictures as in Qwen3-VL, without deepstack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.qwen3_5 import TINY
from .grids import packed_boxes
from .packed_tower import PackedTower


class Qwen3_5Adapter(Adapter):
    """`Qwen3_5ForConditionalGeneration` and `Qwen3_5MoeForConditionalGeneration`."""

    model_types = ("qwen3_5", "qwen3_5_moe")
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return packed_boxes(given)

    def vision_adapter(self) -> PackedTower:
        return PackedTower()
