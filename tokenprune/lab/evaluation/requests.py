"""What lmms-eval asks, as `generate` and the processor take it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import MediaError
from ..media import read_image, read_video


def image(given: Any) -> Image.Image:
    """A picture, or one that is read from a path. Raises MediaError."""
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    if isinstance(given, (str, Path)):
        return read_image(Path(given))
    raise MediaError(f"expected a picture or the path of one, got {type(given).__name__}")


def video(part: Any, frames: int) -> np.ndarray:
    """Frames of the video that a part of a message names by its path. Raises MediaError."""
    if part.start_time is not None or part.end_time is not None:
        raise MediaError(f"{part.url}: clips with a start or end time are not read; cut the video first")
    if isinstance(part.url, (str, Path)):
        return read_video(Path(part.url), frames)
    raise MediaError(f"expected the path of a video, got {type(part.url).__name__}")


def beams(settings: Mapping[str, Any]) -> int:
    """Rows of a batch for each prompt."""
    return int(settings.get("num_beams") or 1)


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's `generation_kwargs` as generate's; greedy unless it asks for a temperature."""
    temperature = float(settings.get("temperature") or 0)
    sampled = temperature > 0 and settings.get("do_sample") is not False
    return {
        "max_new_tokens": int(settings.get("max_new_tokens") or 1024),
        "num_beams": beams(settings),
        "do_sample": sampled,
        "temperature": temperature if sampled else None,
        "top_p": settings.get("top_p") if sampled else None,
        "top_k": settings.get("top_k") if sampled else None,
    }


def until(text: str, settings: Mapping[str, Any]) -> str:
    r"""The text before the first stop string; `\n\n` stands in every task by default and is none, as in lmms-eval."""
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop and stop != "\n\n":
            text = text.split(stop)[0]
    return text.strip()
