"""Rows that left the projector, known again by their bits in the decoder, as long as their encoding lives.

`generate` encodes pictures before the prefill, and no hook of the prefill sees how a family then packs the rows:
LLaVA-NeXT by image sizes that its forward is not told again, Qwen2.5-VL out of the order of windows. But all that
packing, cropping, reordering and expanding to beams copies rows, bit for bit. So each row that enters the decoder says
itself where it comes from, and there is no order or count of encodings to trust.

Rows are compared by a hash of their first channels, so that finding them is one sort and one search on their device,
whatever number of pictures there is, without a sync.
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
"""Channels of a row that tell it from all others. Whole rows would be copies of all features, held for a prompt."""


class Landed:
    """Marks of the rows that left the projector in one run of a tower, `m` of them when they have."""

    def __init__(self) -> None:
        self.marks: Float[Tensor, "m w"] | None = None
        self.shape: tuple[int, ...] = ()
        self._hashes: dict[torch.dtype, Int[Tensor, "m"]] = {}

    @property
    def known(self) -> bool:
        """Whether the rows have left."""
        return self.marks is not None

    def land(self, rows: Float[Tensor, "*m d"]) -> None:
        """Remember the rows that left the projector, by a copy: a view of some channels would hold all of them."""
        self.shape = tuple(rows.shape[:-1])
        self.marks = rows.detach().reshape(-1, rows.shape[-1])[:, :WIDTH].clone()

    def hashes(self, dtype: torch.dtype) -> Int[Tensor, "m"]:
        """Of the projector's rows, as the decoder gets them: models cast them to its dtype. None before they left."""
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

        Equal rows have equal hashes, as those of one picture shown twice: the k-th goes to the k-th, so each finds the
        same content, and different pictures stay different.

        Returns:
            the runs that are kept; each row's place among the rows of all of them, one run after the other, or -1;
            where each run's rows begin, and end; and which rows are strange: not the model's own either.
        """
        hashes, device = ops.row_hashes(rows[:, :WIDTH]), rows.device
        runs = list(self)
        known = [run.hashes(rows.dtype).to(device) for run in runs]
        found = ops.find_equal(hashes, torch.cat([hashes[:0], *known]))
        strange = found < 0
        if (added := self.adapter.added(self.base)) is not None:
            # such as newlines: the model casts them to the features' dtype when it packs them, then to the decoder's
            for dtype in {run.marks.dtype for run in runs if run.marks is not None}:
                strange &= ~torch.isin(hashes, ops.row_hashes(added[:, :WIDTH].to(dtype).to(rows)))
        return runs, found, [*accumulate(map(len, known), initial=0)], strange
