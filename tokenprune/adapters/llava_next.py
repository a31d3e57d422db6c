"""LLaVA-NeXT: a base picture, then an unpadded grid of tiles with a newline token after each row."""

from __future__ import annotations

from .decoder import LlamaStyleAdapter


class LlavaNextAdapter(LlamaStyleAdapter):
    """`LlavaNextForConditionalGeneration`. Newline tokens are visual tokens: they may be dropped like any other."""

    model_types = ("llava_next",)
