"""The state of a prompt batch: its plan and, per stage, the view of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from .budget import rescale
from .errors import BudgetError, LayerError, RecipeError, ScheduleError, TokenpruneError
from .flops import Geometry
from .recipe import Pass, Recipe
from .registry import registry
from .values import Budget, Shape, View


@dataclass(frozen=True)
class Stage:
    """What happens at one layer: which pass, and how many visual tokens each prompt has before and after.

    `tower` counts the blocks of the vision tower that ran before, if that is where it happens.
    """

    work: Pass
    before: tuple[int, ...]
    kept: tuple[int, ...]
    tower: int | None = None


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
    recipe: Recipe,
    depth: int,
    counts: Sequence[int],
    ecl: int | None,
    budget: Budget | None = None,
    whole: Sequence[int] | None = None,
) -> dict[int, Stage]:
    """Every prompt's plan for the decoder (`counts` visual tokens each), by layer, without layers that drop nothing.

    With a budget, each prompt's keeps are rescaled for its own number of visual tokens; `whole` says how many those
    were before passes inside the vision tower.

    Raises LayerError, BudgetError, and RecipeError if the passes do not go down the decoder in order.
    """
    works, plans = _put_together(recipe.name, recipe.decoder, depth, counts, ecl)
    if budget is not None and recipe.decoder:
        plans = [
            rescale(planned, depth, n, budget, of)
            for planned, n, of in zip(plans, counts, whole or counts, strict=True)
        ]
    return _stages(works, plans, counts)


def plan_tower(
    recipe: Recipe, tower: int, depth: int, counts: Sequence[int], ecl: int | None, budget: Budget | None = None
) -> dict[int, Stage]:
    """What the passes inside the vision tower do to pictures of `counts` tokens, by layer of the tower.

    Each picture keeps one token at least: towers do not run on nothing.

    With a budget, what each step drops is rescaled, so that decoder passes rescaled by the same factor meet it.

    Args:
        tower: its blocks that count, and the projector.
        depth: decoder blocks.

    Raises LayerError, BudgetError, and RecipeError if the passes do not go up the tower in order.
    """
    if isinstance(budget, int):
        raise BudgetError(
            f"a recipe with tower: vision drops tokens before it knows the prompt: give its budget as a share of the "
            f"visual tokens, such as 1/3, got {budget} tokens"
        )
    try:
        works, plans = _put_together(recipe.name, recipe.tower, tower, counts, None)
    except LayerError as error:
        raise LayerError(f"inside the vision tower (its last block is the projector): {error}") from error
    if budget is not None:
        for row, n in enumerate(counts):
            kept = min(plans[row].values(), default=n)
            _, (after,) = _put_together(recipe.name, recipe.decoder, depth, [kept], ecl)
            wanted = _rescaled(kept, after, depth, n, budget)
            share = Fraction(n - wanted, max(n - kept, 1))
            plans[row] = {layer: n - int((n - left) * share) for layer, left in plans[row].items()}
    plans = [{layer: max(1, left) for layer, left in planned.items()} for planned in plans]
    return _stages(works, plans, counts)


def plan_whole(
    recipe: Recipe, sizes: Geometry, visual: int, ecl: int | None, budget: Budget | None = None
) -> dict[int, int]:
    """`{layer: visual tokens kept}` of one prompt, as far as shapes tell; layers below 0 are of the vision tower.

    Raises what `plan_tower` and `plan_stages` raise.
    """
    plan, left = {}, visual
    if recipe.tower:
        if isinstance(budget, int):
            budget = f"{min(budget, visual)}/{visual}"
        (each, rest) = divmod(visual, sizes.pictures)
        stages = plan_tower(recipe, sizes.tower, sizes.depth, [each - sizes.cls], ecl, budget)
        for layer, stage in stages.items():
            plan[layer - sizes.tower] = left = sizes.pictures * (stage.kept[0] + sizes.cls) + rest
    stages = plan_stages(recipe, sizes.depth, [left], ecl, budget, whole=[visual])
    return {**plan, **{layer: stage.kept[0] for layer, stage in stages.items()}}


def _rescaled(kept: int, after: Mapping[int, int], depth: int, n: int, budget: Budget) -> int:
    """What a tower that leaves `kept` of `n` tokens to a decoder with this plan should leave to meet the budget."""
    plan = {0: kept, **after}  # a stage at layer 0 comes right after the tower
    scaled = rescale({layer: count for layer, count in plan.items() if count < n}, depth, n, budget)
    if plan[0] in (0, n):
        return kept
    return min(n, max(scaled.get(0, n), round(kept * scaled.get(0, n) / plan[0])))


def _stages(works: Mapping[int, Pass], plans: Sequence[Mapping[int, int]], counts: Sequence[int]) -> dict[int, Stage]:
    stages: dict[int, Stage] = {}
    left = tuple(counts)
    for layer, work in works.items():
        kept = tuple(planned.get(layer, now) for now, planned in zip(left, plans, strict=True))
        if kept != left:
            stages[layer] = Stage(work, left, kept)
            left = kept
    return stages


def _put_together(
    recipe: str, passes: Sequence[Pass], depth: int, counts: Sequence[int], ecl: int | None
) -> tuple[dict[int, Pass], list[dict[int, int]]]:
    """The pass at each layer where some prompt drops tokens, layers ascending, and each prompt's `{layer: kept}`."""
    works: dict[int, Pass] = {}
    together: list[dict[int, int]] = [{} for _ in counts]
    left = list(counts)
    for work in passes:
        plans = [plan(work, Shape(depth, visual=n, ecl=ecl)) if n else {} for n in counts]
        for layer in sorted({layer for planned in plans for layer in planned}):
            if works and layer <= max(works):
                raise RecipeError(recipe, [f"two passes meet at layer {layer} of {depth}: layers must ascend"])
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
    everything: View
    counts: tuple[int, ...]
    question: tuple[int, ...]
    stages: dict[int, Stage]
    start: int = 0
    earlier: PromptState | None = None
    views: dict[int, View] = field(default_factory=dict)
    scores: dict[int, Float[Tensor, "b s"]] = field(default_factory=dict)
    drafts: int = 0
    bare: bool = False

    @property
    def entering(self) -> Bool[Tensor, "b s"]:
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
    def entered(self) -> tuple[int, ...]:
        """How many they are, per prompt."""
        layer = self.layer(-1)
        return self.counts if layer is None else self.stages[layer].kept

    @property
    def end(self) -> int:
        """Columns of the conversation up to and with this prompt."""
        return self.start + self.everything.span

    @property
    def pruned(self) -> bool:
        """Whether some block lacks columns of the conversation."""
        return self.lacking is not None

    @property
    def lacking(self) -> PromptState | None:
        """The last prompt of the conversation that some block lacks columns of."""
        return next((turn for turn in self.turns() if turn.views), None)

    @property
    def ends(self) -> tuple[bool, ...]:
        """Whether a prompt ends with its picture, so that the answer is read from a visual token."""
        return tuple(n > 0 and text == self.drafts for n, text in zip(self.counts, self.question, strict=True))

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

    def compact(self, block: int) -> int | None:
        """The last stage up to this block that numbers positions anew, or None."""
        found = [at for at in self.views if at <= block and self.stages[at].work.positions == "compact"]
        return max(found, default=None)

    def freed(self, block: int, device: torch.device, spared: Mapping[int, int] | None = None) -> Int[Tensor, "b s"]:
        """Of each column of this prompt, how many of those up to it have no position any more in this block.

        `spared`: prompts whose last token was dropped at some layer, and is in the views of this pass all the same.
        """
        everything, layer = self.everything.to(device), self.compact(block)
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
            if not any(turn.seen(block).padded for turn in self.turns()):
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
        for block in sorted({max(layer, 0) for turn in self.turns() for layer in turn.views}):
            places = self.places(block, room, device)
            places = functional.pad(places, (0, room - places.shape[1]), value=-1)
            compact = any(turn.compact(block) is not None for turn in self.turns())
            found[self.layers(block)] = places, self.dropped(block, device) if compact else None
        return found

    def _held(self, block: int, given: Tensor, pad: int) -> Tensor:
        """Of something given for every column of the conversation, what is of columns that a block holds."""
        parts, at = [], 0
        for turn in [*self.turns()][::-1]:
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
        for turn in self.turns():
            if turn.compact(block) is not None:
                gone += turn.freed(block, device, spared if turn is self else None)[:, -1:]
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
            bare=self.bare,
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
