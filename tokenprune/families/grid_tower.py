"""Vision towers of which squares of patches become one token: pooled, or shuffled into channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..parts.vision import BlockRun, Call, TokenRows
from ..seen.vision import VisionBlock
from .clip_tower import ClipTower, attention_mask, begins_with_cls, grid_units, with_mask


@dataclass(frozen=True)
class GridTower(ClipTower):
    """Pictures of equal size, as CLIP's, and something after the blocks that wants square grids.

    Attributes:
        side: of a config, how many patches of a row (and of a column) become one token.
    """

    side: Callable[[Any], int] = lambda config: 1
    whole: bool = True

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        if (mask := attention_mask(run.call)) is not None and bool(
            (~mask if mask.dtype is torch.bool else mask < 0).any()
        ):
            raise UnsupportedModelError(
                "padded pictures hide patches from the vision tower's attention, and it cannot be computed again "
                "without them: give pictures of one size, without a pixel_attention_mask"
            )
        return super().read(tower, block, run)

    def token_rows(self, config: Any, tower: nn.Module, call: Call, hidden: Float[Tensor, "b l d"]) -> TokenRows:
        pictures, length = hidden.shape[:2]
        unit = self.side(config) ** 2
        tokens = (length - begins_with_cls(tower)) // unit
        return TokenRows((tokens,) * pictures, unit, grid_units(pictures, length, tokens))

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        if (mask := attention_mask(call)) is None:
            return call
        pictures, length = len(mask), mask.shape[-1]
        own = rows.view(pictures, -1) - torch.arange(pictures, device=rows.device)[:, None] * length
        if mask.ndim == 2:  # flash attention's
            mask = mask.gather(1, own)
        else:
            heads, left = mask.shape[1], own.shape[1]
            mask = mask.gather(2, own[:, None, :, None].expand(-1, heads, -1, length))
            mask = mask.gather(3, own[:, None, None].expand(-1, heads, left, -1))
        return with_mask(call, mask)
