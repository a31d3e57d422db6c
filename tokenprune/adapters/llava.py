"""LLaVA-1.5 (arXiv 2310.03744): one square grid of CLIP patches per picture."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import TowerAdapter
from .decoder import LlamaStyleAdapter, grid_boxes
from .towers import ClipTower


class LlavaAdapter(LlamaStyleAdapter):
    """`LlavaForConditionalGeneration`."""

    model_types = ("llava",)

    def boxes(self, config: Any, n: int) -> Float[Tensor, "n 5"] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        pictures, rest = divmod(n, side * side)
        return None if rest else grid_boxes(pictures, side, side).to(torch.float)

    def tower(self) -> TowerAdapter:
        return ClipTower()
