"""Where tokens lie if the model gets a picture twice: whole, and cut into tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .grids import grid_boxes, nowhere, tower_grid


def tiled_boxes(config: Any, height: int, width: int) -> Float[Tensor, "n 5"]:
    """The whole picture (panel 0), then the tiles' cells that the model's own unpadding leaves (panel 1).

    A newline token, which has no place, stands after each row of tiles.
    """
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    side, patch = tower_grid(config), config.vision_config.patch_size
    canvas = select_best_resolution((height, width), config.image_grid_pinpoints)
    # The picture is resized into the canvas, keeping its shape, and stands in the middle.
    picture = np.broadcast_to(np.uint8(0), (1, height, width))
    inner_height, inner_width = get_patch_output_size(picture, canvas, input_data_format="channels_first")
    top, left = (canvas[0] - inner_height) // 2, (canvas[1] - inner_width) // 2
    y, x = torch.meshgrid(torch.arange(canvas[0] // patch), torch.arange(canvas[1] // patch), indexing="ij")
    edges = [(x * patch - left) / inner_width, (y * patch - top) / inner_height]
    edges += [((x + 1) * patch - left) / inner_width, ((y + 1) * patch - top) / inner_height]
    cells = unpad_image(torch.stack([torch.ones_like(edges[0]), *edges]), (height, width)).permute(1, 2, 0)
    newlines = nowhere(cells[:, 0])[:, None]
    return torch.cat([grid_boxes(1, side, side), torch.cat([cells, newlines], dim=1).flatten(0, 1)])
