"""The state of a prompt batch: its plan and, per stage, the view of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..plan.stages import Stage
from .view import View

ViewLayers = tuple[int | None, ...]
"""Of every prompt of a conversation, the stage whose view a block sees: blocks with the same ones hold the same."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt batch from its prefill to its last decode step; owned by its cache. A stage makes a new one.

    A later turn with pictures is a prompt of its own, which remembers the `earlier` one. Columns between and after
    prompts (answers, turns of text) are seen by every block.

    Attributes:
        ids: token ids.
        visual: columns that hold visual tokens.
        full_view: the view before any pruning.
        counts: visual tokens per prompt.
        question: text tokens after the last visual token, per prompt.
        stages: plan of this batch, by layer; negative ones are inside the vision tower, -1 right before its projector.
        start: columns of the conversation before this prompt.
        earlier: the prompt before this one in the same conversation.
        views: what is left, by layer.
        scores: of each stage, by layer: NaN for columns that were not scored.
        drafts: last columns that are no prompt yet: tokens of assisted decoding, which may be taken back.
        bare: its placeholders came without pictures.
    """

    ids: Int[Tensor, "b s"]
    visual: Bool[Tensor, "b s"]
    full_view: View
    counts: tuple[int, ...]
    question: tuple[int, ...]
    stages: Mapping[int, Stage]
    start: int = 0
    earlier: Prompt | None = None
    views: Mapping[int, View] = field(default_factory=dict)
    scores: Mapping[int, Float[Tensor, "b s"]] = field(default_factory=dict)
    drafts: int = 0
    bare: bool = False

    # -- what a stage makes of it --------------------------------------------------------------------------------

    def after(self, layer: int, view: View, scores: Float[Tensor, "b s"]) -> Prompt:
        """The state after the stage at a layer."""
        return replace(self, views={**self.views, layer: view}, scores={**self.scores, layer: scores})

    def after_vision(self, stages: Mapping[int, Stage], views: Mapping[int, View]) -> Prompt:
        """The state once it is known what passes inside the vision tower left, and all stages are planned."""
        return replace(self, stages=stages, views=views)

    def without_answering(self, since: Mapping[int, int]) -> Prompt:
        """The state when its pass is over: `since` says of which prompts, and from which layer on, the last visual
        token was dropped although the answer was read from it. Nobody sees it any more.
        """
        views = dict(self.views)
        for row, dropped_at in since.items():
            for layer, view in self.views.items():
                if layer >= dropped_at:
                    views[layer] = views[layer].without(row, view.width - 1 - self.drafts)
        return replace(self, views=views)

    def select(self, rows: Int[Tensor, "j"]) -> Prompt:
        """The state of other batch rows (beams, repeats)."""
        at = rows.tolist()

        def pick(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[row] for row in at)

        return replace(
            self,
            ids=self.ids[rows.to(self.ids.device)],
            visual=self.visual[rows.to(self.visual.device)],
            full_view=self.full_view.select(rows),
            counts=pick(self.counts),
            question=pick(self.question),
            stages={
                layer: replace(stage, before=pick(stage.before), kept=pick(stage.kept))
                for layer, stage in self.stages.items()
            },
            earlier=self.earlier and self.earlier.select(rows),
            views={layer: view.select(rows) for layer, view in self.views.items()},
            scores={layer: score[rows.to(score.device)] for layer, score in self.scores.items()},
        )

    def repeat(self, repeats: int) -> Prompt:
        """Each prompt `repeats` times in a row."""
        return self.select(torch.arange(len(self.counts)).repeat_interleave(repeats))

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

    # -- this prompt ---------------------------------------------------------------------------------------------

    @property
    def ends_with_picture(self) -> tuple[bool, ...]:
        """Of each prompt: then the answer is read from a visual token."""
        return tuple(n > 0 and text == self.drafts for n, text in zip(self.counts, self.question, strict=True))

    @property
    def visual_after_vision(self) -> Bool[Tensor, "b s"]:
        """Columns with visual tokens that enter block 0: not those that were dropped inside the vision tower."""
        if self.view_layer(-1) is None:
            return self.visual
        return self.visual & self.view_at(-1).to(self.visual.device).marked()

    @property
    def entering_visual(self) -> Bool[Tensor, "b k"]:
        """Which of the columns that enter block 0 hold visual tokens."""
        view = self.view_at(-1).to(self.visual.device)
        return self.visual.gather(1, view.index) & view.valid

    @property
    def count_after_vision(self) -> tuple[int, ...]:
        """How many visual tokens enter block 0, per prompt."""
        layer = self.view_layer(-1)
        return self.counts if layer is None else self.stages[layer].kept

    def view_layer(self, block: int) -> int | None:
        """The stage whose view block number `block` sees of this prompt, or None if it sees everything."""
        above = [layer for layer in self.views if layer <= block]  # torch.compile traces this
        return max(above) if above else None

    def view_at(self, block: int) -> View:
        """What block number `block` sees of this prompt."""
        layer = self.view_layer(block)
        return self.full_view if layer is None else self.views[layer]

    def renumbered_at(self, block: int) -> int | None:
        """The last stage up to this block that numbers positions anew, or None."""
        found = [at for at in self.views if at <= block and self.stages[at].step.positions == "compact"]
        return max(found, default=None)

    def freed(self, block: int, device: torch.device, answering: Mapping[int, int]) -> Int[Tensor, "b s"]:
        """Of each column of this prompt, how many of those up to it have no position any more in this block.

        `answering`: prompts whose last visual token was dropped at some layer, and is in the views of this pass still.
        """
        everything, layer = self.full_view.to(device), self.renumbered_at(block)
        if layer is None:
            return torch.zeros_like(everything.index)
        stays = self.views[layer].to(device).marked()
        for row, since in answering.items():
            if since <= layer:
                stays[row, everything.width - 1 - self.drafts] = False
        return (everything.valid & ~stays).cumsum(1)

    # -- the conversation up to it -------------------------------------------------------------------------------

    def conversation(self) -> Iterator[Prompt]:
        """This prompt and those before it, latest first."""
        prompt: Prompt | None = self
        while prompt is not None:
            yield prompt
            prompt = prompt.earlier

    @property
    def end(self) -> int:
        """Columns of the conversation up to and with this prompt."""
        return self.start + self.full_view.span

    @cached_property
    def lacking(self) -> Prompt | None:
        """The last prompt of the conversation that some block lacks columns of."""
        return next((prompt for prompt in self.conversation() if prompt.views), None)

    @property
    def pruned(self) -> bool:
        """Whether some block lacks columns of the conversation."""
        return self.lacking is not None

    @cached_property
    def first_pruned(self) -> int | None:
        """The first block that lacks columns of the conversation, or None."""
        return min((max(layer, 0) for prompt in self.conversation() for layer in prompt.views), default=None)

    @cached_property
    def plain(self) -> bool:
        """Whether later passes go as if nothing was dropped, unless the caller masks columns: no padding is seen, and
        no position was numbered anew.
        """
        views = (view for prompt in self.conversation() for view in (prompt.full_view, *prompt.views.values()))
        steps = (prompt.stages[layer].step for prompt in self.conversation() for layer in prompt.views)
        return not any(view.padded for view in views) and all(step.positions == "original" for step in steps)

    def missing(self, block: int) -> int:
        """Columns that a block does not hold although the caller counts them."""
        return sum(prompt.full_view.width - prompt.view_at(block).width for prompt in self.conversation())

    def view_layers(self, block: int) -> ViewLayers:
        """`view_layer` of every prompt of the conversation."""
        return tuple(prompt.view_layer(block) for prompt in self.conversation())

    def next_stage(self, block: int, depth: int) -> int:
        """The first block after this one that sees another view of the conversation, or `depth`."""
        later = [layer for prompt in self.conversation() for layer in prompt.views if layer > block]
        return min(later) if later else depth

    def renumbered(self, block: int) -> bool:
        """Whether this block sees positions that were numbered anew."""
        return any(prompt.renumbered_at(block) is not None for prompt in self.conversation())

    def freed_in_all(self, block: int, device: torch.device, answering: Mapping[int, int]) -> Int[Tensor, "b 1"]:
        """Columns of the conversation whose positions are free in this block; `answering` as in `freed`."""
        gone = torch.zeros(len(self.counts), 1, dtype=torch.long, device=device)
        for prompt in self.conversation():
            if prompt.renumbered_at(block) is not None:
                gone += prompt.freed(block, device, answering if prompt is self else {})[:, -1:]
        return gone

    def mask(
        self, block: int, attention_mask: Tensor | None, total: int, device: torch.device
    ) -> Bool[Tensor, "b held"] | None:
        """The 2-D mask over what a block holds of the conversation's first `total` columns; None hides nothing.

        `attention_mask` (b, total) is the caller's. Which columns a block holds up to the end of this prompt does not
        change any more, so every decode step finds that ready; all later columns are held.
        """
        if attention_mask is None:
            if not any(prompt.view_at(block).padded for prompt in self.conversation()):
                return None
            given = torch.ones(len(self.counts), total, dtype=torch.bool, device=device)
        else:
            given = attention_mask.to(device, torch.bool)
        key = self.view_layers(block), device
        if key not in self._held:
            columns = self.columns_held(block, self.end, device)
            self._held[key] = columns.clamp_min(0), columns >= 0
        columns, real = self._held[key]
        return torch.cat([given.gather(1, columns) & real, given[:, self.end :]], dim=1)

    @cached_property
    def _held(self) -> dict[tuple[ViewLayers, torch.device], tuple[Int[Tensor, "b held"], Bool[Tensor, "b held"]]]:
        """Columns that blocks hold up to the end of this prompt, and which are no pads, as `mask` needs them."""
        return {}

    def columns_held(self, block: int, total: int, device: torch.device) -> Int[Tensor, "b held"]:
        """The column of the conversation (of `total`) that each one is that a block holds; -1 for pads."""
        every = torch.arange(total, device=device).expand(len(self.counts), -1)
        parts, at = [], 0
        for prompt in [*self.conversation()][::-1]:
            start, view = prompt.start, prompt.view_at(block).to(device)
            mine = every[:, start : start + view.span].gather(1, view.index)
            parts += [every[:, at:start], mine.masked_fill(~view.valid, -1)]
            at = start + view.span
        return torch.cat([*parts, every[:, at:]], dim=1)

    def in_static_cache(self, room: int, device: torch.device) -> dict[ViewLayers, tuple[Tensor, Tensor | None]]:
        """`columns_held` (`room` of them) and, where positions were numbered anew, `freed_in_all`, by `view_layers`.

        All that later passes on a static cache need of this conversation, in sizes that are the same for each.
        """
        found = {}
        for block in sorted({max(layer, 0) for prompt in self.conversation() for layer in prompt.views}):
            columns = self.columns_held(block, room, device)
            columns = functional.pad(columns, (0, room - columns.shape[1]), value=-1)
            freed = self.freed_in_all(block, device, {}) if self.renumbered(block) else None
            found[self.view_layers(block)] = columns, freed
        return found
