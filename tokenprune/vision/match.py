"""Rows that left the projector, known again by their bits in the decoder, as long as their encoding lives.

`generate` encodes pictures before the prefill, and no hook of the prefill sees how a family then packs the rows. But
the rows that enter the decoder are bit-for-bit copies of rows that left the projector, whatever packing, cropping,
window order and beam expansion lie between: so each of them says itself where it comes from.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import ops
from ..parts.vision import VisionAdapter

WIDTH = 64
"""Channels of a row that tell it from all others."""


class Landed:
    """Marks of the rows that left the projector in one run of a tower."""

    def __init__(self) -> None:
        self.marks: Float[Tensor, "m w"] | None = None
        self.shape: tuple[int, ...] = ()
        self._hashes: dict[torch.dtype, Int[Tensor, "m"]] = {}

    def land(self, rows: Float[Tensor, "*m d"]) -> None:
        """Remember the rows that left the projector."""
        self.shape = tuple(rows.shape[:-1])
        self.marks = rows.detach().reshape(-1, rows.shape[-1])[:, :WIDTH].clone()

    def hashes(self, dtype: torch.dtype) -> Int[Tensor, "m"]:
        """Of the projector's rows, as the decoder gets them; none before they left it."""
        if self.marks is None:
            return torch.empty(0, dtype=torch.long)
        if dtype not in self._hashes:
            self._hashes[dtype] = ops.row_hashes(self.marks.to(dtype))
        return self._hashes[dtype]


Run = TypeVar("Run", bound=Landed)


class Encodings(Generic[Run]):
    """Runs of a model's towers, each as long as the encoding that the model made of it (the tower's output object)."""

    def __init__(self, adapter: VisionAdapter, base: nn.Module) -> None:
        self.adapter, self.base = adapter, base
        self._kept: dict[int, tuple[weakref.ref[Any], Run]] = {}  # by the identity of the encoding

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Run]:
        return iter([run for _, run in list(self._kept.values())])

    def keep(self, encoding: Any, run: Run) -> None:
        """Until `encoding` is gone: a tensor or an object of tensors; a tuple is gone with its first one."""
        encoding = encoding[0] if isinstance(encoding, tuple) else encoding  # tuples take no weak references
        key = id(encoding)
        self._kept[key] = weakref.ref(encoding, lambda _: self._kept.pop(key, None)), run

    def clear(self) -> None:
        self._kept.clear()

    def find(self, rows: Float[Tensor, "n d"]) -> tuple[list[Run], Int[Tensor, "n"], list[int], Bool[Tensor, "n"]]:
        """Where rows that enter the decoder come from, without a device sync.

        Returns:
            the runs that are kept; each row's place among the rows of all of them, one run after the other, or -1;
            where each run's rows begin, and end; and which rows are strange: not the model's own either.
        """
        mine, device = ops.row_hashes(rows[:, :WIDTH]), rows.device
        known = list(self)
        hashes = [run.hashes(rows.dtype).to(device) for run in known]
        found = ops.find_equal(mine, torch.cat([mine[:0], *hashes]))
        strange = found < 0
        if (added := self.adapter.added(self.base)) is not None:
            for dtype in {run.marks.dtype for run in known if run.marks is not None}:
                strange &= ~torch.isin(mine, ops.row_hashes(added[:, :WIDTH].to(dtype).to(rows)))  # as they are packed
        return known, found, [*accumulate(map(len, hashes), initial=0)], strange
