"""One encoding: what its hooks hand to each other, and what they do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import PromptError
from ..model.taps import Taps
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..plan.stages import Stage
from . import calls, holes, stage
from .groups import Survivors
from .holes import HoleCode
from .match import Landed


@dataclass(eq=False)
class Encoding:
    """One run of a tower.

    Attributes:
        adapter: of its family.
        code: what its holes say.
        tower: the module that runs.
        call: of it, without the pixels.
        taps: hooks on its blocks and their projections.
        stages: by layer; known before the first block, when the sizes of the pictures are.
        survivors: what is left; None before the first block, or where no picture came.
        captured: the block before a stage.
        landed: the rows that left the projector, to be known again by their bits.
    """

    adapter: VisionAdapter
    code: HoleCode
    tower: nn.Module
    call: Call
    taps: Taps
    stages: Mapping[int, Stage] = field(default_factory=dict)
    survivors: Survivors | None = None
    captured: BlockRun | None = None
    landed: Landed = field(default_factory=Landed)

    def prune(
        self, layer: int, hidden: Float[Tensor, "*r d"], state_rows: Sequence[Int[Tensor, "u n m"]] | None = None
    ) -> Float[Tensor, "*k d"]:
        """The rows that a stage leaves. `state_rows`: theirs among the rows of the block before, if not the same."""
        survivors, states = self.survivors, None
        assert survivors is not None  # else there are no stages
        if self.captured is not None:  # a block ran before
            block = self.adapter.blocks(self.tower)[layer - 1]
            states = stage.states_of(self.adapter, self.tower, block, self.captured)
        given = stage.StageInput(
            layer=layer,
            stage=self.stages[layer],
            code=self.code,
            states=states,
            state_rows=survivors.rows_of_tokens if state_rows is None else state_rows,
            grid=partial(stage.grid, self.adapter, self.tower, self.call, survivors.came.tokens),
        )
        self.survivors, hidden = stage.prune(given, survivors, hidden)
        self.captured = None
        return hidden

    def narrow(self, block: nn.Module, call: Call, hidden: Float[Tensor, "*r d"]) -> Call:
        """A block's call, for the rows that are left and enter it."""
        if self.survivors is None:
            return call
        call = calls.narrow(self.adapter, call, self.survivors)
        return calls.weigh(self.adapter, block, call, self.survivors, hidden)

    def restore(self, hidden: Float[Tensor, "*k d"]) -> Float[Tensor, "*r d"]:
        """All rows of the run at their places after its last block, zeros for those that are gone.

        For models that pool or shuffle the rows of a grid: every token is made of its own rows alone, so the zeros of
        one that is gone reach no other.
        """
        survivors = self.survivors
        assert survivors is not None
        self.survivors = survivors.as_tokens(unit=1)
        if not survivors.pruned:
            return hidden
        rows = hidden.new_zeros(survivors.rows_that_came, hidden.shape[-1])
        rows = rows.index_copy(0, survivors.kept_rows, hidden.flatten(0, -2))
        return rows.view(*hidden.shape[:-2], -1, hidden.shape[-1])

    def projected(self, output: Float[Tensor, "*m d"]) -> Float[Tensor, "*s d"]:
        """What leaves the projector, of tokens that are gone holes; the same object if none are.

        Raises:
            PromptError: something after the tower's last block made another number of rows.
        """
        survivors, rows = self.survivors, output.flatten(0, -2)
        if survivors is None or not survivors.pruned:
            return output
        if not self.adapter.whole:
            return holes.with_holes(self.code, survivors, rows).view(*output.shape[:-2], -1, output.shape[-1])
        if len(rows) != sum(survivors.counts):
            raise PromptError(
                f"the projector gives {len(rows)} rows for {sum(survivors.counts)} tokens that the passes inside the "
                "vision tower know: drop them in the decoder" + (self.adapter.caveat and f"; {self.adapter.caveat}")
            )
        left = rows[survivors.in_order(survivors.slots_as_they_came)]
        return holes.with_holes(self.code, survivors, left).view_as(output)

    def beside(self, output: Float[Tensor, "k d"]) -> Float[Tensor, "t d"]:
        """What left a module beside the projector, zeros for tokens that are gone by now.

        The decoder adds these rows to those of the same tokens, of which the gone ones are taken out before. No NaN:
        columns that pad a batch are read from anywhere.
        """
        if (survivors := self.survivors) is None or not survivors.pruned:
            return output
        rows = output.new_zeros(sum(survivors.came.tokens), output.shape[-1])
        return rows.index_copy(0, survivors.in_order(survivors.tokens_as_they_came), output)

    def capture(self, block: nn.Module, call: Call) -> None:
        """Keep what this block computes: the scorer of the next stage may ask for it."""
        projected: dict[str, Tensor] = {}

        def note(name: str, output: Tensor) -> None:
            projected[name] = output.detach()

        def after_block(output: Tensor) -> None:
            self.captured = BlockRun(call, output.detach(), projected)

        for name, module in self.adapter.projections(block).items():
            self.taps.after(module, partial(note, name))
        self.taps.after(block, after_block, first=self.adapter.whole)  # before its rows are put back
