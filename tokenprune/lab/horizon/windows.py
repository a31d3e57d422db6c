"""Neighbouring visual tokens of a picture, and scores for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...parts.adapter import Adapter
from ...show.overlay import placed


@dataclass(frozen=True)
class Window:
    """Neighbouring visual tokens of one picture.

    Attributes:
        picture: which picture or video of the prompt.
        panel: which frame, or which of several grids over the same picture.
        box: left, top, right, bottom in [0, 1] of what the model saw of it.
        tokens: their places among the prompt's visual tokens.
    """

    picture: int
    panel: int
    box: tuple[float, float, float, float]
    tokens: tuple[int, ...]


def windows(
    adapter: Adapter,
    config: Any,
    inputs: Mapping[str, Tensor],
    size: int,
    processor: Any = None,
    sizes: tuple[tuple[int, int] | None, ...] = (),
) -> list[Window]:
    """The pictures of a prompt (a batch of one) cut into `size x size` tokens each; less at the far edges.

    Tokens without a place in a picture belong to none. `processor` and `sizes` are as in `Given`. Raises
    TokenpruneError if this family cannot tell places.
    """
    ids = inputs["input_ids"]
    visual = adapter.visual(config, ids)
    token = visual[0].cumsum(0) - 1  # column of the prompt -> place among its visual tokens
    found: list[Window] = []
    for number, picture in enumerate(placed(adapter, config, ids, visual, inputs, 0, processor, sizes)):
        for panel in sorted({int(p) for p in picture.boxes[:, 0].tolist() if p == p}):
            mine = ((picture.boxes[:, 0] == panel) & ~picture.boxes[:, 1].isnan()).nonzero()[:, 0]
            boxes, tokens = picture.boxes[mine, 1:], token[picture.columns[mine]]
            columns, rows = (
                torch.from_numpy(np.unique(boxes[:, side].numpy(), return_inverse=True)[1]) // size for side in (0, 1)
            )
            for row, column in sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))):
                here = (rows == row) & (columns == column)
                left, top = boxes[here, :2].amin(0).tolist()
                right, bottom = boxes[here, 2:].amax(0).tolist()
                found.append(Window(number, panel, (left, top, right, bottom), tuple(tokens[here].tolist())))
    return found


def token_scores(information: Sequence[float], cut: Sequence[Window], n: int) -> Float[Tensor, "n"]:
    """The oracle's score: each token has its window's information; tokens of no window come last."""
    scores = torch.full((n,), float("-inf"))
    for value, window in zip(information, cut, strict=True):
        scores[list(window.tokens)] = value
    return scores
