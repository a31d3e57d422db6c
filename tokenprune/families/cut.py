"""Where tokens lie if a picture is cut into equal tiles, each a stretch of tokens, and the whole picture comes last.

How many tiles a picture has is read from the prompt: processors tell the model no more than their pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..parts.adapter import Given
from .grids import grid_boxes, nowhere
from .tiles import within

Gap = tuple[int, ...]
"""Ids of a prompt between the tokens of a tile and those of the tile before it."""


@dataclass(frozen=True)
class Layout:
    """How the tiles of a picture lie.

    Attributes:
        rows: of tiles.
        columns: of tiles.
        reach: width and height of what the tiles show, of the picture's: above 1 where padding follows it.
    """

    rows: int
    columns: int
    reach: tuple[float, float] = (1.0, 1.0)


Size = tuple[int, int]
"""Height and width of a picture."""


def cut_boxes(
    given: Given,
    side: int,
    begins: Callable[[Sequence[Gap], int], bool],
    layout: Callable[[Sequence[Gap], Size | None], Layout | None],
) -> list[Float[Tensor, "n 5"]]:
    """Of each picture of the batch: the tiles (panel 1), then the whole (panel 0), which may be all there is.

    Args:
        given: with `input_ids`, or there is nothing to tell.
        side: tokens along one side of a tile.
        begins: whether the tile of this number, of those of a prompt, is the first of a picture.
        layout: of a picture, by the gaps before its tiles and its size; None if these do not tell: its tiles are then
            without a place.
    """
    found: list[Tensor] = []
    for prompt in _gaps(given, side * side):
        for picture in _pictures(prompt, begins):
            size = given.sizes[len(found)] if len(found) < len(given.sizes) else None
            found.append(_boxes(len(picture), side, layout(picture, size)))
    return found


def closed(prompt: Sequence[Gap], number: int) -> bool:
    """`begins` of prompts where one mark stands before each whole picture, thus also before the prompt's last tile."""
    return number == 0 or prompt[number - 1][-1:] == prompt[-1][-1:]


def factors(tiles: int) -> list[tuple[int, int]]:
    """All rows and columns of so many tiles."""
    return [(rows, tiles // rows) for rows in range(1, tiles + 1) if tiles % rows == 0]


def nearest(picture: Sequence[Gap], size: Size | None) -> Layout | None:
    """The layout whose shape is nearest to the picture's, as GOT-OCR 2's image processor has it."""
    tiles = max(1, len(picture) - 1)
    if size is None and tiles > 1:
        return None
    height, width = size or (1, 1)
    rows, columns = min(factors(tiles), key=lambda grid: abs(width / height - grid[1] / grid[0]))
    return Layout(rows, columns)


def _gaps(given: Given, tokens: int) -> Iterator[list[Gap]]:
    for row in torch.as_tensor(given.inputs.get("input_ids", ())).tolist():
        at = [column for column, token in enumerate(row) if token == given.config.image_token_id]
        ends = [-1, *at[tokens - 1 :: tokens]]
        yield [tuple(row[end + 1 : start]) for end, start in zip(ends, at[::tokens], strict=False)]


def _pictures(prompt: list[Gap], begins: Callable[[Sequence[Gap], int], bool]) -> Iterator[list[Gap]]:
    starts = [number for number in range(len(prompt)) if begins(prompt, number)]
    for start, end in pairwise([*starts, len(prompt)]):
        yield prompt[start:end]


def _boxes(tiles: int, side: int, layout: Layout | None) -> Float[Tensor, "n 5"]:
    whole = grid_boxes(1, side, side)
    if layout is None:
        cut = grid_boxes(1, (tiles - 1) * side, side) + torch.tensor([1, 0, 0, 0, 0])
        return torch.cat([nowhere(cut), whole]) if tiles > 1 else nowhere(whole)
    rows, columns = layout.rows, layout.columns
    cells = within(grid_boxes(1, rows * side, columns * side), (0.0, 0.0, *layout.reach))
    if tiles == 1:  # too small to be cut
        return cells
    cells[:, 0] = 1
    cut = rearrange(cells, "(r y c x) box -> (r c y x) box", r=rows, y=side, c=columns)
    return torch.cat([cut, whole])
