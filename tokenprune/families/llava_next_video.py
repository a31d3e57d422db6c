"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Box, Given
from .clip_tower import ClipTower
from .forms.llava_next_video import TINY
from .grids import clip_window, grid_boxes, tower_grid
from .tiles import tiled_boxes

CAVEAT = "the model pools the frames of videos between its vision tower and the projector"


class LlavaNextVideoAdapter(Adapter):
    """`LlavaNextVideoForConditionalGeneration`."""

    model_types = ("llava_next_video",)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        config, sizes = given.config, torch.as_tensor(given.inputs.get("image_sizes", ())).tolist()
        side = tower_grid(config) // config.spatial_pool_stride
        videos = given.inputs.get("pixel_values_videos", ())
        return {
            config.image_token_id: [tiled_boxes(config, height, width) for height, width in sizes],
            config.video_token_id: [grid_boxes(len(video), side, side) for video in videos],
        }

    def window(self, processor: Any, width: int, height: int) -> Box:
        """Frames are cropped, pictures are not: without a processor nobody knows which it is."""
        if hasattr(processor, "image_grid_pinpoints"):
            return 0.0, 0.0, 1.0, 1.0
        return clip_window(processor, width, height)

    def vision_adapter(self) -> ClipTower:
        return ClipTower(newline="image_newline", whole=True, caveat=CAVEAT)
