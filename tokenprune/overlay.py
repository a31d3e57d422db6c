"""A picture of what survived."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .errors import TokenpruneError


def overlay(
    image: Image.Image, boxes: Sequence[Sequence[float]], kept: Sequence[bool], dim: float = 0.78
) -> Image.Image:
    """Darken the patches that were dropped.

    Args:
        image: what the model saw, uncropped part only.
        boxes: left, top, right, bottom in [0, 1] of each patch.
        kept: which of them survived.
        dim: how dark, 0 (not at all) to 1 (black).
    """
    if len(boxes) != len(kept):
        raise TokenpruneError(f"expected one box per visual token, got {len(boxes)} boxes for {len(kept)} tokens")
    picture = image.convert("RGB")
    shade = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(shade)
    width, height = picture.size
    for (left, top, right, bottom), stays in zip(boxes, kept, strict=True):
        if not stays:
            corner = (round(left * width), round(top * height))
            draw.rectangle((corner, (round(right * width) - 1, round(bottom * height) - 1)), fill=int(255 * dim))
    return Image.composite(Image.new("RGB", picture.size, (12, 12, 16)), picture, shade)


def centre_square(image: Image.Image) -> Image.Image:
    """The part of a picture that a CLIP image processor shows to the model: its largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
