"""Video-LLaVA (arXiv 2311.10122): pictures and videos, each with placeholder tokens of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Box, Given
from .clip_tower import ClipTower
from .forms.video_llava import PUBLISHED, TINY
from .grids import clip_window, picture_boxes, video_boxes


class VideoLlavaAdapter(Adapter):
    """`VideoLlavaForConditionalGeneration`. A video frame has 257 tokens (its CLS goes through), a picture 256."""

    model_types = ("video_llava",)
    published = (PUBLISHED,)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        config, videos = given.config, given.inputs.get("pixel_values_videos", ())
        return {
            config.image_token_id: repeat(picture_boxes(config)),
            config.video_token_id: [video_boxes(config, len(video)) for video in videos],
        }

    def window(self, processor: Any, width: int, height: int) -> Box:
        return clip_window(processor, width, height)

    def vision_adapter(self) -> ClipTower:
        return ClipTower(names=("image_tower", "video_tower"))
