"""What vision towers leave behind while they run, for scorers of the prompt that their rows end up in.

Hooks keep references to what the projections of the wanted blocks gave; attention is computed from them when a scorer
asks for it. Each visual token is then found by its bits among the rows that left the projector (`match.py`), so no
picture can reach a prompt that does not show it, whatever runs in between.

A recording lives as long as the encoding that the model made of the pictures (`mm_encoder_outputs` in `generate`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import PromptError, ScorerError
from ..model.taps import Live, Taps
from ..parts.vision import VisionAdapter
from ..seen.vision import Block, Vision, resolve_block
from .calls import without_pixels
from .match import Encodings
from .recording import Part, Recording, gather, places


class Recorder:
    """Hooks on a model's vision towers, for the blocks that a recipe's scorers and mergers read."""

    def __init__(
        self, adapter: VisionAdapter, base: nn.Module, config: Any, wanted: Iterable[Block], live: Live | None = None
    ) -> None:
        self.adapter, self.base = adapter, base
        depth = len(adapter.blocks(adapter.towers(base)[0]))
        self.resolve = partial(resolve_block, depth=depth, features=adapter.features(config, depth))
        self.wanted = {self.resolve(block) for block in wanted}
        self.encodings: Encodings[Recording] = Encodings(adapter, base)
        self.live = Live() if live is None else live
        self._open: set[Taps] = set()  # of recordings that are not over, in any thread

    def attach(self, add: Callable[[Any], None]) -> None:
        """Register the hooks; `add` takes their handles."""
        for tower in self.adapter.towers(self.base):
            add(tower.register_forward_pre_hook(self.before_tower, with_kwargs=True))
            add(tower.register_forward_hook(self.after_tower, always_call=True))
        add(self.adapter.projector(self.base).register_forward_hook(self.after_projector))

    def close(self) -> None:
        """Forget everything, also recordings that Ctrl-C left behind, after which torch runs no hook."""
        for taps in list(self._open):
            taps.close()
        self.encodings.clear()

    # -- one recording, in order ---------------------------------------------------------------------------------

    @torch.compiler.disable
    def before_tower(self, tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Tap what the tower has now."""
        self._end()
        taps = Taps(lambda: self.live.recording is recording, self._open)
        recording = Recording(self.adapter, tower, without_pixels(args, kwargs), taps)
        for number in self.wanted:
            recording.tap(number)
        self.live.recording, self.live.landing = recording, weakref.ref(recording)

    @torch.compiler.disable
    def after_projector(self, projector: nn.Module, args: Any, output: Tensor) -> None:
        """The projector runs at the end of the tower's forward or right after it, so once for each recording."""
        landing, self.live.landing = self.live.landing, None
        recording = None if landing is None else landing()
        if isinstance(recording, Recording):
            recording.land(output)

    @torch.compiler.disable
    def after_tower(self, tower: nn.Module, args: Any, output: Any) -> None:
        """Also after an exception. The recording goes with the encoding."""
        recording = self._end()
        if recording is not None and output is not None:
            self.encodings.keep(output, recording)

    def _end(self) -> Recording | None:
        """Take the hooks of this thread's recording out."""
        recording, self.live.recording = self.live.recording, None
        if not isinstance(recording, Recording):
            return None
        recording.taps.close()
        return recording

    # -- what scorers see ----------------------------------------------------------------------------------------

    def find(self, rows: Float[Tensor, "n d"]) -> Vision:
        """The tower as seen from these rows entering the decoder. One device sync.

        Raises:
            PromptError: some of them did not come from a tower that ran inside the pruning block.
        """
        recordings, found, ends, strange = self.encodings.find(rows)
        hits = [((found >= start) & (found < end)).any() for start, end in pairwise(ends)]
        unknown, *hit = torch.stack([strange.sum(), *(some.long() for some in hits)]).tolist()
        if unknown:
            raise PromptError(
                f"{unknown} of {len(rows)} visual tokens did not come from this model's vision tower inside the "
                "pruning block, so the scorer cannot read its states: pass pictures to generate or forward, or encode "
                "them inside the block (model.get_image_features) and hold on to what it returns until the prefill"
                + (self.adapter.caveat and f"; {self.adapter.caveat}")
            )
        parts = [
            Part(recording, found - start, end - start)
            for recording, some, (start, end) in zip(recordings, hit, pairwise(ends), strict=True)
            if some
        ]
        return self._vision(parts, rows.device)

    def _vision(self, parts: Sequence[Part], device: torch.device) -> Vision:
        def read(name: str, block: Block) -> Tensor:
            number = self.resolve(block)
            if number not in self.wanted:
                raise ScorerError(
                    f"tower block {block} was not recorded: name it in `reads_blocks` of the scorer or merger that "
                    "reads it"
                )
            return gather(parts, [partial(part.recording.read, name, number) for part in parts], 0, device)

        if not parts:
            raise PromptError("this prompt shows no picture that went through the vision tower")
        return Vision(places(parts, device), cache(read))
