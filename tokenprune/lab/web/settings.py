"""What a visitor chooses: a picture of their own, and a recipe whose layer can be moved."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ...errors import MediaError
from ...recipe import RecipeLike, load
from ..media import read_image

LONGEST = 2048  # pixels of a picture's sides: larger ones are shrunk, so that a page stays quick
NO_PRESET = "none"


def upload(path: Path) -> Image.Image:
    """An uploaded picture, at most LONGEST pixels a side. Raises MediaError, which names the file only."""
    try:
        picture = read_image(path)
    except MediaError as error:
        raise MediaError(str(error).replace(f"{path.parent}/", "")) from error
    picture.thumbnail((LONGEST, LONGEST))
    return picture


def movable(recipe: RecipeLike) -> int | None:
    """Which pass a layer is set for: the first one in the decoder, if it prunes at one layer; else None."""
    built = load(recipe)
    first = len(built.vision_passes)
    schedule = built.passes[first].schedule if built.decoder_passes else None
    return first if schedule is not None and (schedule.needs or hasattr(schedule, "layer")) else None
