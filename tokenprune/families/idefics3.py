"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): tiles of a picture, then the whole picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .cut import Gap, Layout, Size, closed, cut_boxes
from .forms.idefics3 import TINY
from .grid_tower import GridTower
from .grids import tower_grid


class Idefics3Adapter(Adapter):
    """`Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`. The frames of a video are pictures."""

    model_types = ("idefics3", "smolvlm")
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        side = tower_grid(given.config) // given.config.scale_factor
        return {given.config.image_token_id: cut_boxes(given, side, closed, _layout)}

    def vision_adapter(self) -> GridTower:
        return GridTower(names=("vision_model",), connector="connector", side=lambda config: config.scale_factor)


def _layout(picture: Sequence[Gap], size: Size | None) -> Layout:
    """A mark stands around each tile, and behind it a second one that says which tile it is; line breaks end rows."""
    tiles = max(1, len(picture) - 1)
    rows = 1 + sum(gap[:1] != picture[-1][-2:-1] for gap in picture[1:tiles])
    return Layout(rows, tiles // rows)
