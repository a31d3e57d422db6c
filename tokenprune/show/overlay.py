"""Pictures of what survived, and of the scores: every visual token drawn where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from ..errors import TokenpruneError
from ..parts.adapter import Adapter, Given

Shown = Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray]
"""A picture, or the frames of a video."""

GAP = 4  # pixels between panels
DARK = np.array([12, 12, 16])  # a dropped patch fades into this
UNSEEN = np.array([90, 90, 98])  # what the model never saw
HEAT = np.array([[10, 8, 40], [110, 20, 110], [215, 50, 60], [250, 150, 20], [255, 245, 160]])  # low to high


@dataclass(frozen=True)
class Placed:
    """The tokens of one picture or video: which prompt columns, and panel and box of each (see `Adapter.boxes`).

    `number` counts the pictures of the batch that have the same placeholder.
    """

    columns: Int[Tensor, "n"]
    boxes: Float[Tensor, "n 5"]
    number: int


def placed(
    adapter: Adapter,
    config: Any,
    ids: Int[Tensor, "b s"],
    visual: Bool[Tensor, "b s"],
    inputs: Mapping[str, Any],
    prompt: int,
    processor: Any = None,
    sizes: tuple[tuple[int, int] | None, ...] = (),
) -> list[Placed]:
    """Pictures and videos of one prompt of a batch (`ids`, and which of them are visual tokens), in its order.

    Args:
        adapter: of the family.
        config: of the model.
        ids: of the batch.
        visual: which of them are visual tokens.
        inputs: what the processor returned for the batch.
        prompt: its row in the batch.
        processor: what made the inputs, if it is known.
        sizes: as in `Given`.

    Raises:
        TokenpruneError: the family cannot tell, or `inputs` do not explain the tokens.
    """
    grids = adapter.boxes(Given(config, inputs, processor, sizes))
    if grids is None:
        raise TokenpruneError(
            f"where the visual tokens of {config.model_type} lie is not known: its adapter has to answer `boxes`"
        )
    given = inputs.get("input_ids")
    copies = 1 if given is None else max(1, len(ids) // len(given))  # beams, or several answers to one prompt
    found = []
    for token, pictures in grids.items():
        source = enumerate(pictures)
        for row in range(0, len(ids), copies):
            columns = ((ids[row] == token) & visual[row]).nonzero()[:, 0].cpu()
            while len(columns):
                number, boxes = next(source, (0, None))
                if boxes is None or not 0 < len(boxes) <= len(columns):
                    raise TokenpruneError(
                        f"where {len(columns)} visual tokens of prompt {row} lie cannot be told: pass inputs=, all "
                        "that the processor returned for the last prompt batch"
                    )
                if row == prompt - prompt % copies:
                    found.append(Placed(columns[: len(boxes)], boxes, number))
                columns = columns[len(boxes) :]
    return sorted(found, key=lambda picture: int(picture.columns[0]))


def draw(
    adapter: Adapter,
    processor: Any,
    shown: Shown,
    picture: Placed,
    kept: Bool[Tensor, "s"],
    scores: Float[Tensor, "s"] | None = None,
) -> Image.Image:
    """The panels of one picture or video side by side: dropped patches darkened, or those with scores coloured.

    Args:
        adapter: of the family.
        processor: what made the inputs, or None where the adapter can do without.
        shown: the picture as given to the processor, or the frames it took from a video.
        picture: where its tokens lie.
        kept: prompt columns that survived; with `scores`, those that were scored.
        scores: of the prompt's columns.
    """
    frames = _frames(shown)
    panels = int(picture.boxes[:, 0].max()) + 1
    step = -(-len(frames) // panels)  # frames that share a panel's tokens
    if not frames or (len(frames) > 1 and -(-len(frames) // step) != panels):
        raise TokenpruneError(
            f"this picture or video has {panels} {'panels' if panels > 1 else 'panel'} of tokens, got {len(frames)} "
            "frames: pass the picture, or the frames that the processor took from the video"
        )
    low, high = (0.0, 1.0) if scores is None else span(scores)
    drawn = []
    for panel in range(panels):
        image = frames[min(panel * step, len(frames) - 1)]
        pixels = np.asarray(image).astype(np.float32)
        left, top, right, bottom = adapter.window(_settings(processor, len(frames) > 1), *image.size)
        result = np.broadcast_to(UNSEEN, pixels.shape).astype(np.float32)
        mine = (picture.boxes[:, 0] == panel) & ~picture.boxes[:, 1].isnan()
        columns = picture.columns[mine]
        numbers = [0.0] * len(columns) if scores is None else ((scores[columns] - low) / (high - low)).tolist()
        for box, stays, number in zip(picture.boxes[mine, 1:].tolist(), kept[columns].tolist(), numbers, strict=True):
            rows = _edges(top, bottom, box[1], box[3], image.height)
            across = _edges(left, right, box[0], box[2], image.width)
            share, colour = (0.22, DARK) if not stays else (1.0, DARK) if scores is None else (0.25, _colour(number))
            result[rows, across] = share * pixels[rows, across] + (1 - share) * colour
        drawn.append(Image.fromarray(result.astype(np.uint8)))
    return strip(drawn)


def original(shown: Shown) -> Image.Image:
    """What is drawn on, as it was given: frames of a video side by side."""
    return strip(_frames(shown))


def strip(panels: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height next to each other."""
    joined = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) - 1), panels[0].height), "white")
    at = 0
    for panel in panels:
        joined.paste(panel, (at, 0))
        at += panel.width + GAP
    return joined


def size(shown: Shown) -> tuple[int, int] | None:
    """Height and width of a picture, or of a video's frames."""
    return next(((frame.height, frame.width) for frame in _frames(shown)), None)


def _frames(shown: Shown) -> list[Image.Image]:
    if isinstance(shown, np.ndarray) and shown.ndim == 3:
        shown = Image.fromarray(shown)
    frames = [shown] if isinstance(shown, Image.Image) else shown
    return [
        (frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame))).convert("RGB")
        for frame in frames
    ]


def _settings(processor: Any, video: bool) -> Any:
    """The image or video processor inside a processor, or that itself."""
    image = getattr(processor, "image_processor", processor)
    return getattr(processor, "video_processor", image) if video else image


def _edges(start: float, end: float, low: float, high: float, size: int) -> slice:
    """Pixels of a box's side, given in a window from `start` to `end` of a picture's side."""
    first, last = (round((start + at * (end - start)) * size) for at in (low, high))
    return slice(max(first, 0), max(last, 0))


def span(scores: Float[Tensor, "s"]) -> tuple[float, float]:
    """What the darkest and the brightest colour stand for: the lowest and highest finite score, apart."""
    finite = scores[scores.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _colour(number: float) -> np.ndarray:
    at = min(max(number, 0.0), 1.0) * (len(HEAT) - 1)
    before = min(int(at), len(HEAT) - 2)
    return HEAT[before] + (at - before) * (HEAT[before + 1] - HEAT[before])
