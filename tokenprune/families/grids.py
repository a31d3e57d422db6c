"""Where the tokens of a picture lie, as far as families share it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import TokenpruneError
from ..parts.adapter import Box, Given


def grid_boxes(panels: int, rows: int, columns: int) -> Float[Tensor, "panels*rows*columns 5"]:
    """Panel number, left, top, right, bottom of every cell of equal grids, row by row."""
    panel, y, x = torch.meshgrid(torch.arange(panels), torch.arange(rows), torch.arange(columns), indexing="ij")
    boxes = torch.stack([panel, x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], dim=-1)
    return boxes.reshape(-1, 5).float()


def packed_boxes(given: Given) -> dict[int, list[Float[Tensor, "n 5"]]]:
    """Grids of patches, of which squares become one token: any resolution, a panel for each frame that has tokens."""
    side = given.config.vision_config.spatial_merge_size
    tokens = {"image_grid_thw": given.config.image_token_id, "video_grid_thw": given.config.video_token_id}
    return {
        token: [grid_boxes(int(t), int(h) // side, int(w) // side) for t, h, w in given.inputs.get(grids, ())]
        for grids, token in tokens.items()
    }


def picture_boxes(config: Any) -> Float[Tensor, "n 5"]:
    """A square grid of CLIP's patches; a CLS token stands before it where the model takes all that CLIP gives."""
    side = tower_grid(config)
    boxes = grid_boxes(1, side, side)
    full = config.vision_feature_select_strategy == "full" and config.vision_config.model_type == "clip_vision_model"
    return torch.cat([nowhere(boxes[:1]), boxes]) if full else boxes


def video_boxes(config: Any, frames: int) -> Float[Tensor, "n 5"]:
    """A panel for each frame: a CLS token, and a square grid of CLIP's patches."""
    side = tower_grid(config)
    frame = grid_boxes(1, side, side)
    frame = torch.cat([nowhere(frame[:1]), frame])
    panels = torch.arange(frames).repeat_interleave(len(frame))[:, None]
    return torch.cat([panels, frame[:, 1:].repeat(frames, 1)], dim=1)


def tower_grid(config: Any) -> int:
    """Patches along one side of the square picture that a vision tower sees."""
    return config.vision_config.image_size // config.vision_config.patch_size


def nowhere(boxes: Float[Tensor, "n 5"]) -> Float[Tensor, "n 5"]:
    """The same panels, for tokens that have no place in them."""
    return boxes.clone().index_fill_(1, torch.arange(1, 5), torch.nan)


def clip_window(processor: Any, width: int, height: int) -> Box:
    """What is left of a picture after CLIP's processor: padded to a square (LLaVA's `do_pad`), resized, cropped."""
    if getattr(processor, "do_resize", None) is None:  # none given, or a tokenizer alone
        if width == height:
            return 0.0, 0.0, 1.0, 1.0
        raise TokenpruneError(
            f"a picture of {width} x {height} is cropped or padded to a square, and only the processor knows which: "
            "pass processor=, the one that made the inputs"
        )
    side = max(width, height)
    pad = bool(getattr(processor, "do_pad", None))
    left, top = ((side - width) // 2, (side - height) // 2) if pad else (0, 0)
    whole = resized = (side, side) if pad else (width, height)
    if processor.do_resize:
        resized = _resized(dict(processor.size), *whole)
    cut = resized
    if getattr(processor, "do_center_crop", None):
        crop = dict(processor.crop_size)
        cut = crop["width"], crop["height"]
    x, y = (resized[0] - cut[0]) // 2, (resized[1] - cut[1]) // 2
    across, down = whole[0] / resized[0], whole[1] / resized[1]  # picture pixels per pixel of what the tower sees
    return (
        (x * across - left) / width,
        (y * down - top) / height,
        ((x + cut[0]) * across - left) / width,
        ((y + cut[1]) * down - top) / height,
    )


def _resized(size: dict[str, int], width: int, height: int) -> tuple[int, int]:
    if size.keys() == {"shortest_edge"}:
        short = size["shortest_edge"]
        return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if size.keys() == {"height", "width"}:
        return size["width"], size["height"]
    raise TokenpruneError(
        f"where patches lie is known for processors with a size of shortest_edge, or of height and width, got {size}"
    )
