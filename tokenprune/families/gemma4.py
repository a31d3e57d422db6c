"""Gemma 4: any resolution, pictures and videos; sliding windows, shared keys, inputs per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.gemma4 import TINY
from .gemma4_tower import Gemma4Tower
from .grids import grid_boxes


class Gemma4Adapter(Adapter):
    """`Gemma4ForConditionalGeneration`."""

    model_types = ("gemma4",)
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        config, inputs = given.config, given.inputs
        pooled = config.vision_config.pooling_kernel_size

        def grid(frames: Int[Tensor, "t m 2"]) -> Float[Tensor, "n 5"]:
            columns, rows = (frames.flatten(0, 1).amax(0) + 1).tolist()  # what pads has places of -1
            return grid_boxes(len(frames), rows // pooled, columns // pooled)

        pictures = inputs.get("image_position_ids", ())
        lengths = torch.as_tensor(inputs.get("num_frames_per_video", ())).tolist()
        videos = inputs["video_position_ids"].split(lengths) if lengths else ()
        return {
            config.image_token_id: [grid(places[None]) for places in pictures],
            config.video_token_id: [grid(places) for places in videos],
        }

    def vision_adapter(self) -> Gemma4Tower:
        return Gemma4Tower()
