"""The state of a prompt batch: its plan and, per stage, the view of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .budget import rescale
from .errors import RecipeError, ScheduleError, TokenpruneError
from .recipe import Pass, Recipe
from .registry import registry
from .values import Budget, Shape, View


@dataclass(frozen=True)
class Stage:
    """What happens at one layer: which pass, and how many visual tokens each prompt has before and after."""

    work: Pass
    before: tuple[int, ...]
    kept: tuple[int, ...]


def plan(work: Pass, shape: Shape) -> dict[int, int]:
    """What a pass's schedule plans, checked. Raises ScheduleError, and what `Scheduler.plan` raises."""
    who = f"{registry().origin('scheduler', type(work.schedule))}, planning {shape.visual} visual tokens,"
    try:
        planned: Any = work.schedule.plan(shape)
    except TokenpruneError:
        raise
    except Exception as error:
        raise ScheduleError(f"{who} failed with {type(error).__name__}: {error}") from error
    if not _possible(planned, shape):
        raise ScheduleError(
            f"{who} must give {{layer: tokens kept}} with layers from 0 to {shape.depth - 1} and counts that go down "
            f"from {shape.visual}, got {planned!r}"
        )
    return {int(layer): int(kept) for layer, kept in planned.items()}


def _possible(planned: Any, shape: Shape) -> bool:
    if not isinstance(planned, Mapping) or not all(isinstance(n, Integral) for item in planned.items() for n in item):
        return False
    counts = [shape.visual, *(planned[layer] for layer in sorted(planned))]
    return all(0 <= layer < shape.depth for layer in planned) and all(a >= b >= 0 for a, b in pairwise(counts))


def plan_stages(
    recipe: Recipe, depth: int, counts: Sequence[int], ecl: int | None, budget: Budget | None = None
) -> dict[int, Stage]:
    """Every prompt's plan (`counts` visual tokens each) put together, by layer; layers that drop nothing are left out.

    With a budget, each prompt's keeps are rescaled for its own number of visual tokens.

    Raises LayerError, BudgetError, and RecipeError if the passes do not go down the decoder in order.
    """
    works, plans = _put_together(recipe, depth, counts, ecl)
    if budget is not None:
        plans = [rescale(planned, depth, n, budget) for planned, n in zip(plans, counts, strict=True)]
    stages: dict[int, Stage] = {}
    left = tuple(counts)
    for layer, work in works.items():
        kept = tuple(planned.get(layer, now) for now, planned in zip(left, plans, strict=True))
        if kept != left:
            stages[layer] = Stage(work, left, kept)
            left = kept
    return stages


def _put_together(
    recipe: Recipe, depth: int, counts: Sequence[int], ecl: int | None
) -> tuple[dict[int, Pass], list[dict[int, int]]]:
    """The pass at each layer where some prompt drops tokens, layers ascending, and each prompt's `{layer: kept}`."""
    works: dict[int, Pass] = {}
    together: list[dict[int, int]] = [{} for _ in counts]
    left = list(counts)
    for work in recipe.passes:
        plans = [plan(work, Shape(depth, visual=n, ecl=ecl)) if n else {} for n in counts]
        for layer in sorted({layer for planned in plans for layer in planned}):
            if works and layer <= max(works):
                raise RecipeError(
                    recipe.name,
                    [f"two passes meet at layer {layer} of {depth}: passes must go down the decoder in order"],
                )
            for row, planned in enumerate(plans):
                if planned.get(layer, left[row]) < left[row]:
                    works[layer] = work
                    together[row][layer] = left[row] = planned[layer]
    return works, together


@dataclass(frozen=True, eq=False)
class PromptState:
    """One prompt batch from its prefill to its last decode step; owned by its cache.

    A later turn with pictures of its own is a prompt of its own, which remembers the `earlier` one. Columns between
    and after prompts (answers, turns of text) are seen by every block.

    Attributes:
        ids: token ids.
        visual: columns that hold visual tokens.
        everything: the view before any pruning.
        counts: visual tokens per prompt.
        question: text tokens after the last visual token, per prompt.
        stages: plan of this batch, by layer.
        start: columns of the conversation before this prompt.
        earlier: the prompt before this one in the same conversation.
        views: what is left, by layer; filled while the prefill runs.
        scores: of each stage, by layer, filled likewise: NaN for columns that were not scored.
        drafts: last columns that are no prompt yet: words of assisted decoding, which may be taken back.
    """

    ids: Int[Tensor, "b s"]
    visual: Bool[Tensor, "b s"]
    everything: View
    counts: tuple[int, ...]
    question: tuple[int, ...]
    stages: dict[int, Stage]
    start: int = 0
    earlier: PromptState | None = None
    views: dict[int, View] = field(default_factory=dict)
    scores: dict[int, Float[Tensor, "b s"]] = field(default_factory=dict)
    drafts: int = 0

    @property
    def end(self) -> int:
        """Columns of the conversation up to and with this prompt."""
        return self.start + self.everything.span

    @property
    def pruned(self) -> bool:
        """Whether some block lacks columns of the conversation."""
        return any(turn.views for turn in self.turns())

    @property
    def hidden(self) -> int:
        """Columns that the first cache layer does not hold although the caller counts them."""
        return sum(turn.everything.width - turn.seen(0).width for turn in self.turns())

    def turns(self) -> Iterator[PromptState]:
        """This prompt and those before it, latest first."""
        turn: PromptState | None = self
        while turn is not None:
            yield turn
            turn = turn.earlier

    def layer(self, block: int) -> int | None:
        """The stage whose view block number `block` sees of this prompt, or None if it sees everything."""
        above = [layer for layer in self.views if layer <= block]
        return max(above) if above else None

    def layers(self, block: int) -> tuple[int | None, ...]:
        """`layer` of every turn: blocks with the same answer hold the same columns."""
        return tuple(turn.layer(block) for turn in self.turns())

    def seen(self, block: int) -> View:
        """What block number `block` sees of this prompt."""
        layer = self.layer(block)
        return self.everything if layer is None else self.views[layer]

    def compact(self, block: int) -> bool:
        """Whether this block's positions are renumbered without the gaps of this prompt."""
        return any(at <= block and stage.work.positions == "compact" for at, stage in self.stages.items())

    def mask(
        self, block: int, attention_mask: Tensor | None, total: int, device: torch.device
    ) -> Bool[Tensor, "b held"] | None:
        """The 2-D mask over what a block holds of the conversation's first `total` columns; None hides nothing.

        `attention_mask` (b, total) is the caller's.
        """
        views = [(turn.start, turn.seen(block).to(device)) for turn in self.turns()][::-1]
        if attention_mask is None:
            if not any(view.padded for _, view in views):
                return None
            given = torch.ones(len(self.counts), total, dtype=torch.bool, device=device)
        else:
            given = attention_mask.to(device, torch.bool)
        parts, at = [], 0
        for start, view in views:
            parts += [given[:, at:start], given[:, start : start + view.span].gather(1, view.index) & view.valid]
            at = start + view.span
        return torch.cat([*parts, given[:, at:total]], dim=1)

    def dropped(self, block: int, device: torch.device) -> Int[Tensor, "b 1"]:
        """Tokens whose positions are free, for blocks with compact positions."""
        gone = torch.zeros(len(self.counts), 1, dtype=torch.long, device=device)
        for turn in self.turns():
            if turn.compact(block):
                everything, view = turn.everything.to(device), turn.seen(block).to(device)
                gone += everything.valid.sum(1, keepdim=True) - view.valid.sum(1, keepdim=True)
        return gone

    def select(self, rows: Int[Tensor, "j"]) -> PromptState:
        """The state of other batch rows (beams, repeats)."""
        at = rows.tolist()

        def pick(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[row] for row in at)

        return PromptState(
            ids=self.ids[rows.to(self.ids.device)],
            visual=self.visual[rows.to(self.visual.device)],
            everything=self.everything.select(rows),
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
        )

    def without(self, drafts: int) -> PromptState:
        """The state after the last `drafts` columns were taken back."""
        return replace(
            self,
            ids=self.ids[:, :-drafts],
            visual=self.visual[:, :-drafts],
            everything=self.everything.shorten(drafts),
            question=tuple(count - drafts for count in self.question),
            views={layer: view.shorten(drafts) for layer, view in self.views.items()},
            scores={layer: score[:, :-drafts] for layer, score in self.scores.items()},
            drafts=self.drafts - drafts,
        )

    def repeat(self, repeats: int) -> PromptState:
        """Each prompt `repeats` times in a row."""
        return self.select(torch.arange(len(self.counts)).repeat_interleave(repeats))
