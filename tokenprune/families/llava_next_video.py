"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.llava_next_video import TINY


class LlavaNextVideoAdapter(Adapter):
    """`LlavaNextVideoForConditionalGeneration`."""

    model_types = ("llava_next_video",)
    tiny = (TINY,)
