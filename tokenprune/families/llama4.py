"""Llama 4: tiles of a picture, then the whole picture; chunked attention, blocks without RoPE, experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .cut import Gap, Layout, Size, closed, cut_boxes
from .forms.llama4 import TINY
from .grids import tower_grid
from .llama4_tower import Llama4Tower


class Llama4Adapter(Adapter):
    """`Llama4ForConditionalGeneration`."""

    model_types = ("llama4",)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        vision = given.config.vision_config
        side = int(tower_grid(given.config) * vision.pixel_shuffle_ratio)
        processor = getattr(given.processor, "image_processor", given.processor)
        layout = partial(_layout, vision.image_size, bool(getattr(processor, "resize_to_max_canvas", False)))
        return {given.config.image_token_id: cut_boxes(given, side, closed, layout)}

    def longest(self, config: Any) -> int | None:
        """Blocks without RoPE scale queries by their place in the cache, which is 1 up to here."""
        text = config.get_text_config()
        return int(text.floor_scale) - 1 if text.attn_temperature_tuning else None

    def vision_adapter(self) -> Llama4Tower:
        return Llama4Tower()


def _layout(tile: int, enlarge: bool, picture: Sequence[Gap], size: Size | None) -> Layout | None:
    """The mark that ends the last row stands before the whole picture, and those of other rows before the next.

    The picture is resized into the canvas of the tiles, keeping its shape, from its upper left corner.
    """
    if size is None:
        return None
    tiles = max(1, len(picture) - 1)
    rows = 1 + sum(gap == picture[-1][:1] for gap in picture[1:tiles])
    canvas = rows * tile, tiles // rows * tile
    limits = canvas if enlarge else tuple(min(max(own, tile), most) for own, most in zip(size, canvas, strict=True))
    scale = min(limit / own for limit, own in zip(limits, size, strict=True))
    height, width = (max(1, min(int(own * scale + 1e-6), limit)) for own, limit in zip(size, limits, strict=True))
    return Layout(rows, tiles // rows, (canvas[1] / width, canvas[0] / height))
