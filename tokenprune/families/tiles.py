"""Where tokens lie if the model gets a picture twice: whole, and cut into tiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..parts.adapter import Box
from .grids import grid_boxes, nowhere, tower_grid


def tiled_boxes(config: Any, height: int, width: int, most: int | None = None) -> Float[Tensor, "n 5"]:
    """The whole picture (panel 0), then the tiles' cells that the model's own unpadding leaves (panel 1).

    A newline token, which has no place, stands after each row of tiles. More cells than `most` tiles have become fewer
    and larger.
    """
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    side, patch, tile = tower_grid(config), config.vision_config.patch_size, config.vision_config.image_size
    canvas = select_best_resolution((height, width), config.image_grid_pinpoints)
    # The picture is resized into the canvas, keeping its shape, and stands in the middle.
    picture = np.broadcast_to(np.uint8(0), (1, height, width))
    inner_height, inner_width = get_patch_output_size(picture, canvas, input_data_format="channels_first")
    top, left = (canvas[0] - inner_height) // 2, (canvas[1] - inner_width) // 2
    y, x = torch.meshgrid(*(_starts(length // tile, side, tile, patch) for length in canvas), indexing="ij")
    edges = [(x - left) / inner_width, (y - top) / inner_height]
    edges += [(x + patch - left) / inner_width, (y + patch - top) / inner_height]
    cells = unpad_image(torch.stack([torch.ones_like(edges[0]), *edges]), (height, width)).permute(1, 2, 0)
    ratio = 0.0 if most is None else math.sqrt(cells.shape[0] * cells.shape[1] / (most * side * side))
    if ratio > 1.1:  # the model resamples them then
        rows, columns = (int(length // ratio) for length in cells.shape[:2])
        (left, top), (right, bottom) = cells[0, 0, 1:3].tolist(), cells[-1, -1, 3:].tolist()
        cells = torch.unflatten(within(grid_boxes(1, rows, columns), (left, top, right, bottom)), 0, (rows, columns))
        cells[..., 0] = 1
    newlines = nowhere(cells[:, 0])[:, None]
    return torch.cat([tower_boxes(config), torch.cat([cells, newlines], dim=1).flatten(0, 1)])


def square_boxes(config: Any, height: int, width: int) -> Float[Tensor, "n 5"]:
    """A picture padded to a square, and a newline token, which has no place."""
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    square = -left / width, -top / height, (side - left) / width, (side - top) / height
    boxes = within(tower_boxes(config), square)
    return torch.cat([boxes, nowhere(boxes[:1])])


def tower_boxes(config: Any) -> Float[Tensor, "n 5"]:
    """The patches of a square picture. Where they do not divide it, its last pixels are not seen."""
    side, vision = tower_grid(config), config.vision_config
    seen = side * vision.patch_size / vision.image_size
    return within(grid_boxes(1, side, side), (0.0, 0.0, seen, seen))


def within(boxes: Float[Tensor, "n 5"], part: Box) -> Float[Tensor, "n 5"]:
    """Boxes in a part of a picture, in coordinates of the picture."""
    left, top, right, bottom = part
    width, height = right - left, bottom - top
    return boxes * torch.tensor([1, width, height, width, height]) + torch.tensor([0, left, top, left, top])


def _starts(tiles: int, side: int, tile: int, patch: int) -> Int[Tensor, "tiles*side"]:
    """Pixels where the patches of a row of tiles begin."""
    return (torch.arange(tiles)[:, None] * tile + torch.arange(side) * patch).flatten()
