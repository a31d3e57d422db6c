"""LLaVA-OneVision (arXiv 2408.03326): a base picture and unpadded tiles; videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .clip_tower import ClipTower
from .forms.llava_onevision import TINY
from .grids import grid_boxes, nowhere, tower_grid
from .tiles import square_boxes, tiled_boxes

CAVEAT = (
    "rows of videos, and of pictures with more tokens than vision_aspect_ratio allows, are interpolated by the model "
    "after its projector"
)


class LlavaOnevisionAdapter(Adapter):
    """`LlavaOnevisionForConditionalGeneration`. Pictures of a prompt with several are not cut into tiles."""

    model_types = ("llava_onevision",)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        config, inputs = given.config, given.inputs
        sizes = torch.as_tensor(inputs.get("image_sizes", ())).tolist()
        together = torch.as_tensor(inputs.get("batch_num_images", [1] * len(sizes))).tolist()
        alone = [count == 1 for count in together for _ in range(count)]
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        side = -(-tower_grid(config) // 2)  # frames are pooled two by two
        frames = [grid_boxes(len(video), side, side) for video in inputs.get("pixel_values_videos", ())]
        return {
            config.image_token_id: [
                tiled_boxes(config, height, width, most) if cut else square_boxes(config, height, width)
                for (height, width), cut in zip(sizes, alone, strict=True)
            ],
            config.video_token_id: [torch.cat([each, nowhere(each[-1:])]) for each in frames],
        }

    def vision_adapter(self) -> ClipTower:
        return ClipTower(newline="image_newline", caveat=CAVEAT)
