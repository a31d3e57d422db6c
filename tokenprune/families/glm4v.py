"""GLM-4.1V (arXiv 2507.01006), GLM-4.5V and GLM-4.6V: any resolution, pictures or videos, M-RoPE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Adapter, Given
from .forms.glm4v import TINY
from .grids import packed_boxes
from .packed_tower import PackedTower


class Glm4vAdapter(Adapter):
    """`Glm4vForConditionalGeneration`, `Glm4vMoeForConditionalGeneration` and `Glm46VForConditionalGeneration`.

    Frames of videos have the placeholders of pictures; transformers takes one or the other in a batch.
    """

    model_types = ("glm4v", "glm4v_moe", "glm46v")
    tiny = TINY

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return {given.config.image_token_id: [box for boxes in packed_boxes(given).values() for box in boxes]}

    def vision_adapter(self) -> PackedTower:
        return PackedTower()
