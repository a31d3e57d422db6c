"""Mistral Small 3 and Ministral 3: any resolution, a text token after each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..parts.adapter import Adapter, Given
from ..parts.attention import Attention
from .forms.mistral3 import TINY
from .grids import grid_boxes
from .pixtral_tower import PixtralTower


class Mistral3Adapter(Adapter):
    """`Mistral3ForConditionalGeneration`."""

    model_types = ("mistral3",)
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = given.config.vision_config.patch_size * given.config.spatial_merge_size
        sizes = torch.as_tensor(given.inputs.get("image_sizes", ())).tolist()
        return {given.config.image_token_id: [grid_boxes(1, height // side, width // side) for height, width in sizes]}

    def attention(self, block: Any) -> Attention | None:
        """Ministral's queries grow with the logarithm of their position in lengths that it was trained on."""
        found, rope = super().attention(block), block.self_attn.config.rope_parameters
        beta, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if found is None or beta is None:
            return found

        def temper(positions: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
            return 1 + beta * torch.log1p((positions / length).floor())

        return replace(found, temper=temper)

    def vision_adapter(self) -> PixtralTower:
        return PixtralTower()
