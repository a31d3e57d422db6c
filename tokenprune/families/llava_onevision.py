"""LLaVA-OneVision (arXiv 2408.03326): a base picture and unpadded tiles; videos."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .clip_tower import ClipTower
from .forms.llava_onevision import TINY

CAVEAT = (
    "rows of videos, and of pictures with more tokens than vision_aspect_ratio allows, are interpolated by the model "
    "after its projector"
)


class LlavaOnevisionAdapter(Adapter):
    """`LlavaOnevisionForConditionalGeneration`."""

    model_types = ("llava_onevision",)
    tiny = (TINY,)

    def vision_adapter(self) -> ClipTower:
        return ClipTower(newline="image_newline", caveat=CAVEAT)
