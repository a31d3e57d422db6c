"""InternVL 3 and 3.5 (arXiv 2504.10479, 2508.18265): tiles of a picture, then the whole picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .cut import Gap, cut_boxes, nearest
from .forms.internvl import TINY
from .grid_tower import GridTower


class InternVLAdapter(Adapter):
    """`InternVLForConditionalGeneration`. A picture's tokens stand together; the frames of a video are pictures."""

    model_types = ("internvl",)
    tiny = (TINY,)

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        vision = given.config.vision_config
        side = int(vision.image_size[0] // vision.patch_size[0] * given.config.downsample_ratio)
        return {given.config.image_token_id: cut_boxes(given, side, _begins, nearest)}

    def vision_adapter(self) -> GridTower:
        return GridTower(attention="attention", side=lambda config: round(1 / config.downsample_ratio))


def _begins(prompt: Sequence[Gap], number: int) -> bool:
    return number == 0 or len(prompt[number]) > 0
