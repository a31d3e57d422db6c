"""What vision towers leave behind while they run, for scorers of the prompt that their rows end up in.

Each visual token is found by its bits among the rows that left the projector (`encodings.py`). This undoes every
packing, cropping, window order and beam expansion, and no picture can reach a prompt that does not show it, whatever
runs in between.

A recording lives as long as the encoding that the model made of the pictures (`mm_encoder_outputs` in `generate`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import PromptError, ScorerError
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..seen.vision import Block, Vision, VisionBlock, resolve_block
from .match import Encodings, Landed


class Recording(Landed):
    """One run of a tower: what its blocks computed, and marks of the rows that left the projector."""

    def __init__(self, adapter: VisionAdapter, tower: nn.Module, call: Call) -> None:
        super().__init__()
        self.adapter, self.tower, self.call = adapter, tower, call
        self.calls: dict[int, Call] = {}
        self.outputs: dict[int, Tensor] = {}
        self.projected: dict[int, dict[str, Tensor]] = {}
        self.hooks = ExitStack()
        self._blocks: dict[int, VisionBlock] = {}  # no functools.cache: a cycle would keep the states alive for longer
        self._places: Int[Tensor, "m 3"] | None = None

    def block(self, number: int) -> VisionBlock:
        """What a block computed."""
        if number not in self._blocks:
            run = BlockRun(self.calls[number], self.outputs[number], self.projected[number])
            self._blocks[number] = self.adapter.read(self.tower, self.adapter.blocks(self.tower)[number], run)
        return self._blocks[number]

    def read(self, name: str, number: int, rows: Int[Tensor, "n"]) -> Float[Tensor, "n *w"]:
        """States of a block for these rows of the projector."""
        block = self.block(number)
        if name == "joined_salience":
            block, name = block.joined, "salience"
        if name == "salience":
            name = "cls_attention" if block.cls else "received"
        behind = self.adapter.sources(self.shape, len(block.features)).to(block.features.device)[rows]  # n u
        if name == "keys":
            return block.keys[:, behind].mean((0, 2))
        if name == "joined_keys":
            return rearrange(block.keys[:, behind].mean(2), "heads n dh -> n (heads dh)")
        states: Tensor = getattr(block, name)
        return states[behind].mean(1)

    @property
    def places(self) -> Int[Tensor, "m 3"]:
        """Of the projector's rows."""
        if self._places is None:
            self._places = self.adapter.places(self.tower, self.call, self.shape)
        return self._places


class Recorder:
    """Hooks on a model's vision towers, for the blocks that a recipe's scorers and mergers read."""

    def __init__(self, adapter: VisionAdapter, base: nn.Module, config: Any, wanted: Iterable[Block]) -> None:
        self.adapter, self.base = adapter, base
        depth = len(adapter.blocks(adapter.towers(base)[0]))
        features = adapter.features(config, depth)
        self.depth = depth
        self.resolve = partial(resolve_block, depth=depth, features=features)
        self.wanted = {self.resolve(block) for block in wanted}
        self._live = threading.local()
        self.encodings: Encodings[Recording] = Encodings(adapter, base)
        self._open: set[Recording] = set()  # runs, of any thread

    def attach(self, add: Callable[[Any], None]) -> None:
        """Register the hooks; `add` takes their handles."""
        for tower in self.adapter.towers(self.base):
            add(tower.register_forward_pre_hook(self._start, with_kwargs=True))
            add(tower.register_forward_hook(self._finish, always_call=True))
        add(self.adapter.projector(self.base).register_forward_hook(self._land))

    def close(self) -> None:
        """Forget everything, also runs that Ctrl-C left behind, after which torch runs no hook."""
        for recording in list(self._open):
            recording.hooks.close()
        self._open.clear()
        self.encodings.clear()

    @torch.compiler.disable
    def _start(self, tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a tower: hook what it has now (a LoRA wrapped around it is seen) for this run only."""
        self._stop()
        kept = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "hidden_states")}
        recording = Recording(self.adapter, tower, ((None, *args[1:]), kept))
        self._open.add(recording)
        blocks = self.adapter.blocks(tower)
        for number in self.wanted:
            recording.projected[number] = {}
            after = partial(self._after, recording, number)
            recording.hooks.callback(blocks[number].register_forward_hook(after, with_kwargs=True).remove)
            for name, module in self.adapter.projections(blocks[number]).items():
                look = partial(self._look, recording, number, name)
                recording.hooks.callback(module.register_forward_hook(look).remove)
        self._live.running, self._live.landing = recording, weakref.ref(recording)

    def _look(self, recording: Recording, number: int, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        if recording is self._running:  # and not of a run in another thread
            recording.projected[number][name] = output.detach()

    def _after(
        self, recording: Recording, number: int, module: nn.Module, args: Any, kwargs: Any, output: Any = None
    ) -> None:
        if recording is self._running:  # else torch may run a hook of another thread without keywords for a moment
            recording.calls[number] = ((), {k: v for k, v in kwargs.items() if k != "hidden_states"})
            recording.outputs[number] = (output[0] if isinstance(output, tuple) else output).detach()

    @torch.compiler.disable
    def _finish(self, tower: nn.Module, args: Any, output: Any) -> None:
        """After a tower, also after an exception: the recording goes with the encoding."""
        recording = self._running
        self._stop()
        if recording is not None and output is not None:
            self.encodings.keep(output, recording)

    @torch.compiler.disable
    def _land(self, projector: nn.Module, args: Any, output: Tensor) -> None:
        """After the projector, which runs at the end of the tower's run or right after it."""
        landing = getattr(self._live, "landing", None)
        recording = landing() if landing is not None else None
        self._live.landing = None
        if recording is not None:
            recording.land(output)

    @property
    def _running(self) -> Recording | None:
        return getattr(self._live, "running", None)

    def _stop(self) -> None:
        if (recording := self._running) is not None:
            recording.hooks.close()
            self._open.discard(recording)
        self._live.running = None

    def find(self, rows: Float[Tensor, "n d"]) -> Vision:
        """The tower as seen from these rows entering the decoder.

        Raises:
            PromptError: some of them did not come from a tower that ran inside the pruning block.
        """
        known, found, ends, strange = self.encodings.find(rows)
        hits = [((found >= a) & (found < b)).any() for a, b in pairwise(ends)]
        unknown, *hit = torch.stack([strange.sum(), *(h.long() for h in hits)]).tolist()
        if unknown:
            raise PromptError(
                f"{unknown} of {len(rows)} visual tokens did not come from this model's vision tower inside the "
                "pruning block, so the scorer cannot read its states: pass pictures to generate or forward, or encode "
                "them inside the block (model.get_image_features) and hold on to what it returns until the prefill"
            )
        parts = [(known[i], found - ends[i], ends[i + 1] - ends[i]) for i, some in enumerate(hit) if some]
        return self._tower(rows, parts)

    def _tower(self, rows: Tensor, parts: list[tuple[Recording, Int[Tensor, "n"], int]]) -> Vision:
        def gather(read: Callable[[Recording, Tensor], Tensor], blank: int) -> Tensor:
            """Row by row from the recording that it lies in."""
            given = None
            for recording, at, size in parts:
                states = read(recording, at.clamp(0, size - 1)).to(rows.device)
                inside = ((at >= 0) & (at < size)).reshape(-1, *[1] * (states.ndim - 1))
                given = torch.where(inside, states, blank if given is None else given)
            return torch.empty(0) if given is None else given

        def read(name: str, block: Block) -> Tensor:
            number = self.resolve(block)
            if number not in self.wanted:
                raise ScorerError(
                    f"tower block {block} was not recorded: name it in `reads_blocks` of the scorer or merger that "
                    "reads it"
                )
            return gather(lambda recording, at: recording.read(name, number, at), 0)

        if not parts:
            raise PromptError("this prompt shows no picture that went through the vision tower")
        sizes = [int(recording.places[:, 0].max()) + 1 for recording, _, _ in parts]
        first = dict(zip((recording for recording, _, _ in parts), accumulate(sizes, initial=0), strict=False))

        def place(recording: Recording, at: Tensor) -> Tensor:
            return (recording.places + torch.tensor([first[recording], 0, 0])).to(at.device)[at]

        return Vision(gather(place, -1), cache(read))
