"""The state of a prompt batch: its plan and, per stage, the view of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..plan.stages import Stage
from .view import View


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt batch from its prefill to its last decode step; owned by its cache.

    A later turn with pictures of its own is a prompt of its own, which remembers the `earlier` one. Columns between
    and after prompts (answers, turns of text) are seen by every block.

    Attributes:
        ids: token ids.
        visual: columns that hold visual tokens.
        full_view: the view before any pruning.
        counts: visual tokens per prompt.
        question: text tokens after the last visual token, per prompt.
        stages: plan of this batch, by layer; negative ones are inside the vision tower, -1 right before its projector.
        start: columns of the conversation before this prompt.
        earlier: the prompt before this one in the same conversation.
        views: what is left, by layer; filled while the prefill runs.
        scores: of each stage, by layer, filled likewise: NaN for columns that were not scored.
        drafts: last columns that are no prompt yet: words of assisted decoding, which may be taken back.
        bare: its placeholders came without pictures.
    """

    ids: Int[Tensor, "b s"]
    visual: Bool[Tensor, "b s"]
    full_view: View
    counts: tuple[int, ...]
    question: tuple[int, ...]
    stages: dict[int, Stage]
    start: int = 0
    earlier: Prompt | None = None
    views: dict[int, View] = field(default_factory=dict)
    scores: dict[int, Float[Tensor, "b s"]] = field(default_factory=dict)
    drafts: int = 0
    bare: bool = False

    @property
    def visual_after_vision(self) -> Bool[Tensor, "b s"]:
        """Columns with visual tokens that enter block 0: not those that were dropped inside the vision tower."""
        if self.layer(-1) is None:
            return self.visual
        view = self.seen(-1).to(self.visual.device)
        return self.visual & torch.zeros_like(self.visual).scatter(1, view.index, view.valid)

    @property
    def shown(self) -> Bool[Tensor, "b k"]:
        """Which of the columns that enter block 0 hold visual tokens."""
        view = self.seen(-1).to(self.visual.device)
        return self.visual.gather(1, view.index) & view.valid

    @property
    def count_after_vision(self) -> tuple[int, ...]:
        """How many they are, per prompt."""
        layer = self.layer(-1)
        return self.counts if layer is None else self.stages[layer].kept

    @property
    def end(self) -> int:
        """Columns of the conversation up to and with this prompt."""
        return self.start + self.full_view.span

    @property
    def pruned(self) -> bool:
        """Whether some block lacks columns of the conversation."""
        return self.lacking is not None

    @property
    def lacking(self) -> Prompt | None:
        """The last prompt of the conversation that some block lacks columns of."""
        return next((turn for turn in self.conversation() if turn.views), None)

    @property
    def ends(self) -> tuple[bool, ...]:
        """Whether a prompt ends with its picture, so that the answer is read from a visual token."""
        return tuple(n > 0 and text == self.drafts for n, text in zip(self.counts, self.question, strict=True))

    @property
    def hidden(self) -> int:
        """Columns that the first cache layer does not hold although the caller counts them."""
        return sum(turn.full_view.width - turn.seen(0).width for turn in self.conversation())

    def conversation(self) -> Iterator[Prompt]:
        """This prompt and those before it, latest first."""
        turn: Prompt | None = self
        while turn is not None:
            yield turn
            turn = turn.earlier

    def layer(self, block: int) -> int | None:
        """The stage whose view block number `block` sees of this prompt, or None if it sees everything."""
        above = [layer for layer in self.views if layer <= block]
        return max(above) if above else None

    def layers(self, block: int) -> tuple[int | None, ...]:
        """`layer` of every turn: blocks with the same answer hold the same columns."""
        return tuple(turn.layer(block) for turn in self.conversation())

    def seen(self, block: int) -> View:
        """What block number `block` sees of this prompt."""
        layer = self.layer(block)
        return self.full_view if layer is None else self.views[layer]

    def compact(self, block: int) -> int | None:
        """The last stage up to this block that numbers positions anew, or None."""
        found = [at for at in self.views if at <= block and self.stages[at].step.positions == "compact"]
        return max(found, default=None)

    def freed(self, block: int, device: torch.device, spared: Mapping[int, int] | None = None) -> Int[Tensor, "b s"]:
        """Of each column of this prompt, how many of those up to it have no position any more in this block.

        `spared`: prompts whose last token was dropped at some layer, and is in the views of this pass all the same.
        """
        everything, layer = self.full_view.to(device), self.compact(block)
        if layer is None:
            return torch.zeros_like(everything.index)
        left = self.views[layer].to(device)
        stays = torch.zeros_like(everything.valid).scatter(1, left.index, left.valid)
        for row, since in (spared or {}).items():
            if since <= layer:
                stays[row, everything.width - 1 - self.drafts] = False
        return (everything.valid & ~stays).cumsum(1)

    def mask(
        self, block: int, attention_mask: Tensor | None, total: int, device: torch.device
    ) -> Bool[Tensor, "b held"] | None:
        """The 2-D mask over what a block holds of the conversation's first `total` columns; None hides nothing.

        `attention_mask` (b, total) is the caller's.
        """
        if attention_mask is None:
            if not any(turn.seen(block).padded for turn in self.conversation()):
                return None
            given = torch.ones(len(self.counts), total, dtype=torch.bool, device=device)
        else:
            given = attention_mask.to(device, torch.bool)
        return self._held(block, given, False)

    def places(self, block: int, total: int, device: torch.device) -> Int[Tensor, "b held"]:
        """The column of the conversation (of `total`) that each one is that a block holds; -1 for pads."""
        every = torch.arange(total, device=device).expand(len(self.counts), -1)
        return self._held(block, every, -1)

    def fixed(self, room: int, device: torch.device) -> dict[tuple[int | None, ...], tuple[Tensor, Tensor | None]]:
        """`places` (`room` of them) and what `dropped` gives where positions are compact, by `layers`.

        All that later passes on a static cache need of this conversation, in sizes that are the same for each.
        """
        found = {}
        for block in sorted({max(layer, 0) for turn in self.conversation() for layer in turn.views}):
            places = self.places(block, room, device)
            places = functional.pad(places, (0, room - places.shape[1]), value=-1)
            compact = any(turn.compact(block) is not None for turn in self.conversation())
            found[self.layers(block)] = places, self.dropped(block, device) if compact else None
        return found

    def _held(self, block: int, given: Tensor, pad: int) -> Tensor:
        """Of something given for every column of the conversation, what is of columns that a block holds."""
        parts, at = [], 0
        for turn in [*self.conversation()][::-1]:
            start, view = turn.start, turn.seen(block).to(given.device)
            mine = given[:, start : start + view.span].gather(1, view.index)
            parts += [given[:, at:start], mine.masked_fill(~view.valid, pad)]
            at = start + view.span
        return torch.cat([*parts, given[:, at:]], dim=1)

    def dropped(self, block: int, device: torch.device, spared: Mapping[int, int] | None = None) -> Int[Tensor, "b 1"]:
        """Columns of the conversation so far whose positions are free, for blocks with compact positions.

        `spared` as in `freed`, of this prompt.
        """
        gone = torch.zeros(len(self.counts), 1, dtype=torch.long, device=device)
        for turn in self.conversation():
            if turn.compact(block) is not None:
                gone += turn.freed(block, device, spared if turn is self else None)[:, -1:]
        return gone

    def select(self, rows: Int[Tensor, "j"]) -> Prompt:
        """The state of other batch rows (beams, repeats)."""
        at = rows.tolist()

        def pick(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[row] for row in at)

        return Prompt(
            ids=self.ids[rows.to(self.ids.device)],
            visual=self.visual[rows.to(self.visual.device)],
            full_view=self.full_view.select(rows),
            counts=pick(self.counts),
            question=pick(self.question),
            stages={
                layer: replace(stage, before=pick(stage.before), kept=pick(stage.kept))
                for layer, stage in self.stages.items()
            },
            start=self.start,
            earlier=self.earlier and self.earlier.select(rows),
            views={layer: view.select(rows) for layer, view in self.views.items()},
            scores={layer: score[rows.to(score.device)] for layer, score in self.scores.items()},
            drafts=self.drafts,
            bare=self.bare,
        )

    def without(self, drafts: int) -> Prompt:
        """The state after the last `drafts` columns were taken back."""
        return replace(
            self,
            ids=self.ids[:, :-drafts],
            visual=self.visual[:, :-drafts],
            full_view=self.full_view.shorten(drafts),
            question=tuple(count - drafts for count in self.question),
            views={layer: view.shorten(drafts) for layer, view in self.views.items()},
            scores={layer: score[:, :-drafts] for layer, score in self.scores.items()},
            drafts=self.drafts - drafts,
        )

    def repeat(self, repeats: int) -> Prompt:
        """Each prompt `repeats` times in a row."""
        return self.select(torch.arange(len(self.counts)).repeat_interleave(repeats))
