"""Qwen3-VL (arXiv 2511.21631): features of the tower's middle are added after the first decoder blocks (deepstack)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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

    def additions(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Float[Tensor, "b s d"]]]:
        stacked = kwargs.get("deepstack_visual_embeds")
        if stacked is None:
            return kwargs, {}
        columns = kwargs["visual_pos_masks"]
        rows = {}
        for block, features in enumerate(stacked):
            empty = features.new_zeros(*columns.shape, features.shape[-1])
            rows[block] = empty.masked_scatter(columns[..., None].to(features.device), features)
        return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}, rows

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return packed_boxes(given)

    def vision_adapter(self) -> PackedTower:
        return PackedTower(deepstack="deepstack_merger_list")
