"""LLaVA-1.5 (arXiv 2310.03744): one square grid of CLIP patches per picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Box, Given
from ..parts.vision import VisionAdapter
from .grids import clip_window, grid_boxes, nowhere, tower_grid
from .towers import ClipTower


class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration`."""

    model_types = ("llava",)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return {given.config.image_token_id: repeat(picture_boxes(given.config))}

    def window(self, processor: Any, width: int, height: int) -> Box:
        return clip_window(processor, width, height)

    def vision_adapter(self) -> VisionAdapter:
        return ClipTower()


def picture_boxes(config: Any) -> Float[Tensor, "n 5"]:
    """A square grid; a CLS token stands before it where the model takes all that CLIP gives."""
    side = tower_grid(config)
    boxes = grid_boxes(1, side, side)
    full = config.vision_feature_select_strategy == "full" and config.vision_config.model_type == "clip_vision_model"
    return torch.cat([nowhere(boxes[:1]), boxes]) if full else boxes
