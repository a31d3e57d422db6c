"""LLaVA-OneVision (arXiv 2408.03326): a base picture and unpadded tiles; videos."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.llava_onevision import TINY


class LlavaOnevisionAdapter(Adapter):
    """`LlavaOnevisionForConditionalGeneration`."""

    model_types = ("llava_onevision",)
    tiny = (TINY,)
