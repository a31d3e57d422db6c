"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .clip_tower import ClipTower
from .forms.llava_next_video import TINY

CAVEAT = "the model pools the frames of videos between its vision tower and the projector"


class LlavaNextVideoAdapter(Adapter):
    """`LlavaNextVideoForConditionalGeneration`."""

    model_types = ("llava_next_video",)
    tiny = (TINY,)

    def vision_adapter(self) -> ClipTower:
        return ClipTower(newline="image_newline", whole=True, caveat=CAVEAT)
