"""LLaVA-NeXT: a base picture, then an unpadded grid of tiles with a newline token after each row."""

from __future__ import annotations

from ..interfaces import TowerAdapter
from .decoder import LlamaStyleAdapter
from .towers import NextTower


class LlavaNextAdapter(LlamaStyleAdapter):
    """`LlavaNextForConditionalGeneration`. Newline tokens are visual tokens: they may be dropped like any other."""

    model_types = ("llava_next",)

    def tower(self) -> TowerAdapter:
        return NextTower()
