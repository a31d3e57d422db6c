"""Pictures and videos from and to files. A file that cannot be read or written is one clear MediaError."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from .. import outputs
from ..errors import MediaError

T = TypeVar("T")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_image(path: Path) -> Image.Image:
    """An RGB picture, turned as its EXIF says."""
    return _open(path, lambda file: ImageOps.exif_transpose(file).convert("RGB"))


def read_video(path: Path, frames: int = 8) -> np.ndarray:
    """`frames` pictures spread evenly over a video, `frames x height x width x 3` bytes.

    A folder of pictures, an animated GIF, WebP or PNG, or any video file if PyAV (`pip install av`) is there.
    """
    if path.is_dir():
        found = [read_image(file) for file in pictures(path)]
    elif path.suffix.lower() in PICTURES:
        found = _open(path, lambda file: [frame.convert("RGB") for frame in ImageSequence.Iterator(file)])
    else:
        found = _decode(path)
    if not found:
        raise MediaError(f"{path} holds no frames")
    picked = [found[i] for i in np.linspace(0, len(found) - 1, frames).round().astype(int)]
    return np.stack([np.asarray(frame.resize(picked[0].size)) for frame in picked])


def pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, by name. Raises MediaError if there are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise MediaError(f"{folder} holds no pictures: expected files such as {', '.join(sorted(PICTURES)[:4])}")
    return found


def check_picture(path: Path) -> str:
    """The format of a picture to be written, by its file's ending; nothing is written yet.

    Raises TokenpruneError if there is no such format or the file cannot be written.
    """
    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise MediaError(f"cannot write the picture {path}: no format is known by {path.suffix!r}, end it in .png say")
    outputs.check_output(path)
    return kind


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its file's ending; its folder is made. TokenpruneError if that cannot be."""
    kind, file = check_picture(path), io.BytesIO()
    try:
        picture.save(file, kind)
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot write the picture {path}: {error}") from error
    outputs.write(path, file.getvalue())


def _open(path: Path, read: Callable[[Image.Image], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return read(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"cannot read the picture {path}: {error}") from error


def _decode(path: Path) -> list[Image.Image]:
    try:
        import av
    except ImportError:
        raise MediaError(
            f"cannot decode {path}: install PyAV (pip install av), or give a GIF or a folder of frames"
        ) from None
    try:
        with av.open(str(path)) as container:
            return [frame.to_image() for frame in container.decode(video=0)]
    except (OSError, ValueError, IndexError) as error:
        raise MediaError(f"cannot decode the video {path}: {error}") from error
