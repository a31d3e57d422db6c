"""LLaVA-1.5 (arXiv 2310.03744): one square grid of CLIP patches per picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Box, Given
from .clip_tower import ClipTower
from .forms.llava import PUBLISHED, TINY
from .grids import clip_window, picture_boxes


class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration`."""

    model_types = ("llava",)
    published = (PUBLISHED,)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return {given.config.image_token_id: repeat(picture_boxes(given.config))}

    def window(self, processor: Any, width: int, height: int) -> Box:
        return clip_window(processor, width, height)

    def vision_adapter(self) -> ClipTower:
        return ClipTower()
