"""Video-LLaVA (arXiv 2311.10122): pictures and videos, each with placeholder tokens of their own."""

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
from .llava import picture_boxes
from .towers import TwoTowers


class VideoLlavaAdapter(Adapter):
    """`VideoLlavaForConditionalGeneration`. A video frame has 257 tokens (its CLS goes through), a picture 256."""

    model_types = ("video_llava",)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = tower_grid(given.config)
        videos = []
        for video in given.inputs.get("pixel_values_videos", ()):
            frame = grid_boxes(1, side, side)
            frame = torch.cat([nowhere(frame[:1]), frame])
            panels = torch.arange(len(video)).repeat_interleave(len(frame))[:, None]
            videos.append(torch.cat([panels, frame[:, 1:].repeat(len(video), 1)], dim=1))
        return {given.config.image_token_id: repeat(picture_boxes(given.config)), given.config.video_token_id: videos}

    def window(self, processor: Any, width: int, height: int) -> Box:
        return clip_window(processor, width, height)

    def vision_adapter(self) -> VisionAdapter:
        return TwoTowers()
