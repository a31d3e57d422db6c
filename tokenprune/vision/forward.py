"""Passes inside the vision tower: tokens are dropped or merged while pictures are encoded.

One encoding, in order of its hooks: `before_tower` taps the blocks that the tower has now; `before_block` plans, prunes
where a stage is (`stage.py`) and lets the block see the rows that are left; `before_projector` prunes once more, as the
projector counts as the last block; `after_projector` puts the rows back where they were, with holes between them
(`holes.py`); `after_tower` ends it. Before decoder block 0, `read` asks the holes what went where.

Where a model pools or shuffles the rows of a grid between blocks and projector, `after_last_block` does what else
`before_projector` does, and puts the rows back at once: the projector then makes something of the gaps, too.

The projector runs at the end of the tower's forward (Qwen) or right after it (LLaVA). So an encoding is over for its
blocks when the tower is, and for good when its rows have left the projector.

What is true of one encoding goes with its rows or with the object the model made of it, and nowhere else: threads,
prompts and encodings that nobody shows cannot mix.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..model.taps import Live, Taps
from ..parts.vision import VisionAdapter
from ..plan.stages import Stage
from ..recipe import VisionPass
from . import holes
from .calls import without_pixels
from .encoding import Encoding
from .groups import arriving
from .match import Encodings, Landed

Plan = Callable[[int, Sequence[int]], Mapping[int, Stage]]
"""`plan(depth, counts)`: stages of pictures of so many tokens, by layer of a tower so deep."""


class VisionPruner:
    """Hooks on a model's vision towers, for a recipe's passes inside them.

    Attributes:
        depth: layers of a tower: the blocks that the projector's rows come through, and the projector.
    """

    def __init__(
        self,
        adapter: VisionAdapter,
        base: nn.Module,
        config: Any,
        passes: Sequence[VisionPass],
        plan: Plan,
        live: Live | None = None,
    ) -> None:
        if reason := adapter.refuse(config):
            raise UnsupportedModelError(
                f"this {config.model_type} model cannot be pruned in its vision tower: {reason}"
            )
        self.adapter, self.base, self.config, self.plan = adapter, base, config, plan
        self.depth = adapter.features(config, len(adapter.blocks(adapter.towers(base)[0]))) + 2
        self.code = holes.HoleCode(tuple(passes), self.depth, secrets.token_bytes(3))
        self.encodings: Encodings[Landed] = Encodings(adapter, base)
        self.live = Live() if live is None else live
        self._open: set[Taps] = set()  # of encodings that are not over, in any thread

    def attach(self, add: Callable[[Any], None]) -> None:
        """Register the hooks; `add` takes their handles."""
        for tower in self.adapter.towers(self.base):
            add(tower.register_forward_pre_hook(self.before_tower, with_kwargs=True))
            add(tower.register_forward_hook(self.after_tower, always_call=True))
        projector = self.adapter.projector(self.base)
        add(projector.register_forward_pre_hook(self.before_projector))
        add(projector.register_forward_hook(self.after_projector))
        for side in self.adapter.sides(self.base):
            add(side.register_forward_hook(self.after_side))

    def close(self) -> None:
        """Forget everything, also encodings that Ctrl-C left behind, after which torch runs no hook."""
        for taps in list(self._open):
            taps.close()
        self.encodings.clear()

    @property
    def encoding(self) -> Encoding | None:
        """The one in this thread, until the next begins."""
        return self.live.encoding if isinstance(self.live.encoding, Encoding) else None

    # -- one encoding, in order ----------------------------------------------------------------------------------

    @torch.compiler.disable
    def before_tower(self, tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Tap the blocks that the projector's rows come through."""
        self._untap()
        taps = Taps(lambda: self.live.encoding is encoding, self._open)
        encoding = Encoding(self.adapter, self.code, tower, without_pixels(args, kwargs), taps)
        self.live.encoding = encoding
        blocks = self.adapter.blocks(tower)[: self.depth - 1]
        for number, block in enumerate(blocks):
            taps.before(block, partial(self.before_block, encoding, number, block))
        if self.adapter.whole:
            taps.change(blocks[-1], partial(self.after_last_block, encoding), first=True)

    @torch.compiler.disable
    def before_block(self, encoding: Encoding, number: int, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Prune if a stage is here; then let the block see what is left and nothing else."""
        hidden = args[0]
        if number == 0:
            self._plan_stages(encoding, hidden)
        if number in encoding.stages:
            hidden = encoding.prune(number, hidden)
        call = encoding.narrow(block, ((None, *args[1:]), kwargs), hidden)
        if number + 1 in encoding.stages:
            encoding.capture(block, call)
        return (hidden, *call[0][1:]), dict(call[1])

    @torch.compiler.disable
    def after_last_block(self, encoding: Encoding, hidden: Float[Tensor, "*k d"]) -> Float[Tensor, "*r d"]:
        """Prune if a stage is right before the projector; then every row back where it was, with zeros between them."""
        if encoding.survivors is None:
            return hidden
        if self.depth - 1 in encoding.stages:
            hidden = encoding.prune(self.depth - 1, hidden)
        return encoding.restore(hidden)

    @torch.compiler.disable
    def after_side(self, side: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """A row for every token, as those that are there are expected."""
        encoding = self.encoding
        return None if encoding is None or encoding.landed.known else encoding.beside(output)

    @torch.compiler.disable
    def before_projector(self, projector: nn.Module, args: Any) -> Any:
        """Prune if a stage is right here."""
        encoding = self.encoding
        if encoding is None or encoding.survivors is None or encoding.landed.known or self.adapter.whole:
            return None
        left_blocks, hidden = encoding.survivors, args[0]
        encoding.survivors = left_blocks.entering_projector(hidden.shape[:-1].numel())
        if self.depth - 1 not in encoding.stages:
            return None
        return (encoding.prune(self.depth - 1, hidden, left_blocks.rows_of_tokens), *args[1:])

    @torch.compiler.disable
    def after_projector(self, projector: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Every row back where it was, and holes between them."""
        encoding = self.encoding
        if encoding is None or encoding.landed.known:
            return None
        whole = encoding.projected(output)
        encoding.landed.land(whole)
        return whole

    @torch.compiler.disable
    def after_tower(self, tower: nn.Module, args: Any, output: Any) -> None:
        """Also after an exception; the projector may still be to come."""
        self._untap()
        if output is None:
            self.live.encoding = None
        elif (encoding := self.encoding) is not None:
            self.encodings.keep(output, encoding.landed)

    def read(
        self, hidden: Float[Tensor, "b s d"], visual: Bool[Tensor, "b s"]
    ) -> tuple[Int[Tensor, "b s"], list[tuple[VisionPass, tuple[int, ...]]]]:
        """What the rows that enter the decoder say: `holes.read`."""
        return holes.read(self.code, self.encodings, hidden, visual)

    # -- below ---------------------------------------------------------------------------------------------------

    def _plan_stages(self, encoding: Encoding, hidden: Float[Tensor, "*r d"]) -> None:
        """What will go, now that the sizes of the pictures are known."""
        came = self.adapter.token_rows(self.config, encoding.tower, encoding.call, hidden)
        if came.tokens:
            encoding.survivors = arriving(came, hidden.shape[:-1].numel(), hidden.device)
            encoding.stages = self.plan(self.depth, encoding.survivors.tokens_of_groups)

    def _untap(self) -> None:
        if (encoding := self.encoding) is not None:
            encoding.taps.close()
