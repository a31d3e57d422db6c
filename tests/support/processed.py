"""Processors, and what they return."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from families import IMAGE, PAD, VIDEO, VIDEO_LLAVA_PICTURES, model
from PIL import Image
from transformers import (
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    Qwen2VLImageProcessorPil,
    VideoLlavaImageProcessor,
)

SQUARE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


PROCESSORS = {
    "llava": LlavaImageProcessorPil(**SQUARE),
    "llava, padded": LlavaImageProcessorPil(**SQUARE, do_pad=True),
    "llava, stretched": LlavaImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
    "llava_next": LlavaNextImageProcessorPil(**SQUARE, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]),
    "video_llava": VideoLlavaImageProcessor(**SQUARE),
    "qwen2_5_vl": Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 4096}, patch_size=4, merge_size=2, temporal_patch_size=2
    ),
}


Item = Image.Image | list[Image.Image]


@cache
def unmixed(family: str) -> Any:
    """The tiny model with a vision tower whose patches do not look at each other."""
    lm = copy.deepcopy(model(family))
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if "language_model" not in name and ("out_proj" in name or "attn.proj" in name):
                weight.zero_()
    return lm


def inputs(case: str, rows: Sequence[Sequence[Item]]) -> dict[str, torch.Tensor]:
    """A left-padded batch of prompts with these pictures and videos (lists of frames), as a processor makes it."""
    family, process = case.split(",")[0], PROCESSORS[case]
    images = [item for row in rows for item in row if isinstance(item, Image.Image)]
    videos = [item for row in rows for item in row if not isinstance(item, Image.Image)]
    found: dict[str, torch.Tensor] = {}
    if images:
        made = dict(process(images, return_tensors="pt"))
        found.update({VIDEO_LLAVA_PICTURES if name == "pixel_values_images" else name: made[name] for name in made})
    if videos and family == "qwen2_5_vl":  # a pair of frames after the other, as if each pair was a still picture
        made = [dict(process(frames[::2], return_tensors="pt")) for frames in videos]
        found["pixel_values_videos"] = torch.cat([one["pixel_values"] for one in made])
        grids = [one["image_grid_thw"] for one in made]
        found["video_grid_thw"] = torch.stack([torch.tensor([len(grid), *grid[0, 1:]]) for grid in grids])
    elif videos:
        made = [dict(process(frames, return_tensors="pt")) for frames in videos]
        found["pixel_values_videos"] = torch.stack([next(iter(one.values())) for one in made])
    lengths = {IMAGE: iter(_lengths(family, found, "image")), VIDEO: iter(_lengths(family, found, "video"))}
    lines = []
    for number, row in enumerate(rows):
        line = [20] * (3 + number)
        for item in row:
            token = IMAGE if isinstance(item, Image.Image) else VIDEO
            line += [token] * next(lengths[token]) + [21]
        lines.append([*line, 22, 23])
    width = max(map(len, lines))
    ids = torch.tensor([[PAD] * (width - len(line)) + line for line in lines])
    found |= {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if family == "qwen2_5_vl":
        found["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return found


@torch.no_grad()
def _lengths(family: str, found: dict[str, torch.Tensor], kind: str) -> list[int]:
    """Tokens of each picture or video, as the model itself counts them."""
    if kind == "video" and "pixel_values_videos" in found:
        if family == "video_llava":
            return [17 * len(video) for video in found["pixel_values_videos"]]
        return (found["video_grid_thw"].prod(1) // 4).tolist()
    names = ("pixel_values", "pixel_values_images", "image_sizes", "image_grid_thw")
    mine = {name: found[name] for name in names if name in found} if kind == "image" else {}
    return [len(one) for one in unmixed(family).get_image_features(**mine).pooler_output] if mine else []
