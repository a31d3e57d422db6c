"""Mistral Small 3 and Ministral 3: any resolution, a text token after each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.mistral3 import TINY
from .grids import grid_boxes


class Mistral3Adapter(Adapter):
    """`Mistral3ForConditionalGeneration`."""

    model_types = ("mistral3",)
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = given.config.vision_config.patch_size * given.config.spatial_merge_size
        sizes = torch.as_tensor(given.inputs.get("image_sizes", ())).tolist()
        return {given.config.image_token_id: [grid_boxes(1, height // side, width // side) for height, width in sizes]}
