"""VideoLLaMA 3 (arXiv 2501.13106): any resolution; of videos, the model itself leaves out what does not change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.video_llama_3 import TINY
from .grids import grid_boxes
from .merge_sizes_tower import MergeSizesTower


class VideoLlama3Adapter(Adapter):
    """`VideoLlama3ForConditionalGeneration`."""

    model_types = ("video_llama_3",)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        pictures, videos = (_grids(given, kind) for kind in ("image", "video"))
        if (left := given.inputs.get("video_compression_mask")) is not None:
            masks = left.cpu().split([len(boxes) for boxes in videos])
            videos = [boxes[mask] for boxes, mask in zip(videos, masks, strict=True)]
        return {given.config.image_token_id: pictures, given.config.video_token_id: videos}

    def vision_adapter(self) -> MergeSizesTower:
        return MergeSizesTower()


def _grids(given: Given, kind: str) -> list[Float[Tensor, "n 5"]]:
    """Every cell of the pictures or videos: as many patches of its side become one token as its merge size says."""
    sizes, merged = (given.inputs.get(f"{kind}_{name}", ()) for name in ("grid_thw", "merge_sizes"))
    return [
        grid_boxes(int(t), int(h) // int(side), int(w) // int(side))
        for (t, h, w), side in zip(sizes, merged, strict=True)
    ]
