"""What one run of a vision tower left behind, and what tokens of a prompt find of it in several runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..model.taps import Taps
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..seen.vision import VisionBlock
from .calls import without_states
from .match import Landed


class Recording(Landed):
    """One run of a tower: what its blocks computed, and marks of the rows that left the projector."""

    def __init__(self, adapter: VisionAdapter, tower: nn.Module, call: Call, taps: Taps) -> None:
        super().__init__()
        self.adapter, self.tower, self.call, self.taps = adapter, tower, call, taps
        self.runs: dict[int, BlockRun] = {}
        self._blocks: dict[int, VisionBlock] = {}  # no functools.cache: a cycle would keep the states alive for longer
        self._places: Int[Tensor, "m 3"] | None = None

    def tap(self, number: int) -> None:
        """Record a block of this run: references, no copies."""
        block = self.adapter.blocks(self.tower)[number]
        calls: list[Call] = []
        projected: dict[str, Tensor] = {}

        def before_block(args: Any, kwargs: dict[str, Any]) -> None:
            calls.append(without_states(args, kwargs))

        def note(name: str, output: Tensor) -> None:
            projected[name] = output.detach()

        def after_block(output: Tensor) -> None:
            self.runs[number] = BlockRun(calls.pop(), output.detach(), projected)

        self.taps.before(block, before_block)
        self.taps.after(block, after_block)
        for name, module in self.adapter.projections(block).items():
            self.taps.after(module, partial(note, name))

    def block(self, number: int) -> VisionBlock:
        """What a block computed."""
        if number not in self._blocks:
            block = self.adapter.blocks(self.tower)[number]
            self._blocks[number] = self.adapter.read(self.tower, block, self.runs[number])
        return self._blocks[number]

    def read(self, name: str, number: int, rows: Int[Tensor, "n"]) -> Float[Tensor, "n *w"]:
        """States of a block for these rows of the projector: means over the tower rows behind each."""
        block = self.block(number)
        behind = self._sources(len(block.features)).to(block.features.device)[rows]  # n u
        if name == "keys":
            return block.keys[:, behind].mean((0, 2))
        if name == "joined_keys":
            return rearrange(block.keys[:, behind].mean(2), "heads n dh -> n (heads dh)")
        states: Tensor = block.joined.salience if name == "joined_salience" else getattr(block, name)
        return states[behind].mean(1)

    def _sources(self, rows: int) -> Int[Tensor, "m u"]:
        return self.adapter.sources(self.tower, self.call, self.shape, rows)

    @property
    def places(self) -> Int[Tensor, "m 3"]:
        """Picture, row and column of the projector's rows."""
        if self._places is None:
            self._places = self.adapter.places(self.tower, self.call, self.shape)
        return self._places


@dataclass(frozen=True, eq=False)
class Part:
    """A recording that some tokens of a prompt come from.

    Attributes:
        rows: of each token of the prompt, its row among the recording's; outside of them if it is of another one.
        count: rows of the recording.
    """

    recording: Recording
    rows: Int[Tensor, "n"]
    count: int


def gather(
    parts: Sequence[Part], reads: Sequence[Callable[[Tensor], Tensor]], blank: int, device: torch.device
) -> Float[Tensor, "n *w"]:
    """What each token's own recording has for its row, `blank` for tokens of none.

    Each recording is asked for a row of every token, and what is not of its own is thrown away: to ask for those alone
    would take their number, which only the device knows.
    """
    gathered = None
    for part, read in zip(parts, reads, strict=True):
        states = read(part.rows.clamp(0, part.count - 1)).to(device)
        inside = ((part.rows >= 0) & (part.rows < part.count)).reshape(-1, *[1] * (states.ndim - 1))
        gathered = torch.where(inside, states, blank if gathered is None else gathered)
    return torch.empty(0) if gathered is None else gathered


def places(parts: Sequence[Part], device: torch.device) -> Int[Tensor, "n 3"]:
    """Picture, row and column of each token; pictures of later recordings are numbered on from earlier ones."""

    def read(places: Int[Tensor, "m 3"], first: int, rows: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
        return (places + torch.tensor([first, 0, 0])).to(rows.device)[rows]

    places = [part.recording.places for part in parts]
    firsts = accumulate((int(own[:, 0].max()) + 1 for own in places), initial=0)
    return gather(parts, [partial(read, own, first) for own, first in zip(places, firsts, strict=False)], -1, device)
