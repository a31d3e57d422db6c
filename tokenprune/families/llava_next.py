"""LLaVA-NeXT: a base picture, then an unpadded grid of tiles with a newline token after each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .clip_tower import ClipTower
from .forms.llava_next import PUBLISHED, TINY
from .tiles import tiled_boxes


class LlavaNextAdapter(Adapter):
    """`LlavaNextForConditionalGeneration`. Newline tokens are visual tokens: they may be dropped like any other."""

    model_types = ("llava_next",)
    published = (PUBLISHED,)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        sizes = [tuple(map(int, size)) for size in given.inputs.get("image_sizes", ())]
        return {given.config.image_token_id: [tiled_boxes(given.config, height, width) for height, width in sizes]}

    def vision_adapter(self) -> ClipTower:
        return ClipTower(newline="image_newline")
