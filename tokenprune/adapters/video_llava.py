"""Video-LLaVA (arXiv 2311.10122): pictures and videos, each with placeholder tokens of their own."""

from __future__ import annotations

from ..interfaces import TowerAdapter
from .decoder import LlamaStyleAdapter
from .towers import TwoTowers


class VideoLlavaAdapter(LlamaStyleAdapter):
    """`VideoLlavaForConditionalGeneration`. A video frame has 257 tokens (its CLS goes through), a picture 256."""

    model_types = ("video_llava",)
    placeholders = ("image_token_id", "video_token_id")

    def tower(self) -> TowerAdapter:
        return TwoTowers()
