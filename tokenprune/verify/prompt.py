"""A ragged batch of prompts with pictures, as token ids: what any model is given, whatever its pictures are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .sizes import VOCAB

_PLACEHOLDERS = ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id")
STARTS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index", "image_bos_token_id")
_ENDS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")
_MERGES = ("spatial_merge_size", "merge_size", "merge_kernel_size")
_CROSS_ATTENTION = ("cross_attention_layers", "cross_layer_interval")

# The rows: numbers of text tokens, and pictures as rows and columns of tokens.
_ROWS: tuple[tuple[int | tuple[int, int], ...], ...] = ((2, (2, 3), 3, (2, 4), 5), (7,), (4, (3, 4), 9))


@dataclass(frozen=True, eq=False)
class Prompt:
    """Three rows, padded on the left: two pictures, none, one.

    Attributes:
        ids: token ids.
        mask: 0 for padding.
        visual: which columns stand for picture tokens.
        grids: rows and columns of each picture's tokens, in the order of the batch.
        sizes: tokens of each picture.
        earlier: tokens of each picture before these, in the batch that a row is of.
    """

    ids: Int[Tensor, "b s"]
    mask: Int[Tensor, "b s"]
    visual: Bool[Tensor, "b s"]
    grids: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    earlier: tuple[int, ...] = ()

    def alone(self, row: int) -> Prompt:
        """One row without its padding."""
        counts, at = [self.visual[: row + n].sum() for n in (0, 1)], [0, *accumulate(self.sizes)]
        start, stop = (at.index(int(count)) for count in counts)
        real = self.mask[row].bool()
        ids, mask, visual = (rows[row][real][None] for rows in (self.ids, self.mask, self.visual))
        return Prompt(ids, mask, visual, self.grids[start:stop], self.sizes[start:stop], self.sizes[:start])


def prompt(config: Any, image: int, newlines: bool) -> Prompt:
    """For a shrunk config, whose special tokens are the low half of its token ids: text is made of the others.

    `newlines`: a picture has a token more at the end of each of its rows.
    """
    generator = torch.Generator().manual_seed(0)
    pad = first(config, ("pad_token_id",)) or 0
    around = [[] if token is None else [token] for token in (first(config, STARTS), first(config, _ENDS))]
    grids = tuple(segment for row in _ROWS for segment in row if not isinstance(segment, int))
    sizes = {(h, w): h * (w + newlines) for h, w in grids}
    rows = []
    for segments in _ROWS:
        row: list[int] = []
        for segment in segments:
            if isinstance(segment, int):
                row += torch.randint(VOCAB // 2 + 1, VOCAB, (segment,), generator=generator).tolist()
            else:
                row += [*around[0], *[image] * sizes[segment], *around[1]]
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Prompt(ids, mask, (ids == image) & mask.bool(), grids, tuple(sizes[grid] for grid in grids))


def placeholder(config: Any) -> int | None:
    """The token id whose columns are a picture's tokens; None if the config names none."""
    vocabulary = first(config, ("vocabulary_map",)) or {}
    return first(config, _PLACEHOLDERS) or vocabulary.get("<image>")


def without_columns(config: Any) -> str | None:
    """Why no columns of the decoder are a picture's, or None: some are."""
    if config.is_encoder_decoder or first(config, _CROSS_ATTENTION) is not None:
        return "pictures are not columns of its decoder, which looks at them by cross-attention"
    return None if placeholder(config) is not None else "its config names no token that stands for those of a picture"


def merge(config: Any) -> int:
    """Patches along a side of what becomes one token."""
    found = first(config, _MERGES)
    return int(found[0]) if isinstance(found, Sequence) else int(found or 1)


def configs(config: Any) -> Iterator[Any]:
    """A config, and all in it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "get_text_config"):
            yield from configs(value)


def first(config: Any, names: Sequence[str]) -> Any:
    """The first of these fields that has a value, in this config or one inside it."""
    found = (getattr(one, name, None) for name in names for one in configs(config))
    return next((value for value in found if value is not None), None)
