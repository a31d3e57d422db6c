"""One stage inside the vision tower: rank the tokens of each picture, fold those that go into others, drop them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from .. import ops
from ..errors import ScorerError
from ..parts import guard
from ..parts.scorer import VisionScorer
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..plan.stages import Stage
from ..seen.pictures import Pictures, Ranking
from ..seen.vision import VisionBlock
from .groups import LEFT, Group, Survivors
from .holes import HoleCode, spell_scorer


@dataclass(frozen=True, eq=False)
class StageInput:
    """What a stage does, and what its scorer may read.

    Attributes:
        layer: tower blocks that already ran.
        stage: its pass, and how many tokens stay of each group's pictures.
        code: what the holes of dropped tokens will say.
        states: of the block before by name, for every row that left it; None before the first block.
        state_rows: by group, the rows of each token that is left, counted in those that left the block before.
        grid: row and column of each token, given its number among all that came.
    """

    layer: int
    stage: Stage
    code: HoleCode
    states: Callable[[str], Tensor] | None
    state_rows: Sequence[Int[Tensor, "u n m"]]
    grid: Callable[[Int[Tensor, "u n"]], Int[Tensor, "u n 2"]]

    @property
    def scorer(self) -> VisionScorer:
        assert isinstance(self.stage.step.scorer, VisionScorer)  # `VisionPass` sees to it
        return self.stage.step.scorer

    def number(self, fault: str | None = None) -> int:
        """What holes say of this stage."""
        return self.code.number(self.layer, self.stage.step, fault)


@dataclass(frozen=True, eq=False)
class Choice:
    """What becomes of the tokens of one group's pictures, counted without CLS rows.

    Attributes:
        kept: those that stay, ascending.
        into: where each token goes, itself if it stays; None if those dropped are lost.
        nan: pictures whose scores are NaN.
        lost: pictures with tokens that go into some that are dropped or not there.
    """

    kept: Int[Tensor, "u k"]
    into: Int[Tensor, "u n"] | None
    nan: Bool[Tensor, "u"]
    lost: Bool[Tensor, "u"] | None = None


def prune(given: StageInput, survivors: Survivors, hidden: Float[Tensor, "*r d"]) -> tuple[Survivors, Tensor]:
    """What is left after a stage, and the rows of it, in order.

    CLS rows always stay: scorers do not see them, and the attention of later blocks reads and writes them.
    """
    cls, dropped = survivors.cls, given.number()
    flat, codes, proportional = hidden.flatten(0, -2), survivors.codes, survivors.proportional
    groups, rows = [], []
    for number, (group, token_rows) in enumerate(zip(survivors.groups, survivors.rows_of_tokens, strict=True)):
        if given.stage.kept[number] < group.left - cls:  # else nothing goes, and no scorer is asked
            as_they_came, sizes = survivors.slots_as_they_came[number], group.sizes
            tokens = flat[token_rows]  # u n m d
            mean = tokens.mean(2)
            choice = choose(given, show(given, survivors, number, mean), mean)
            if choice.into is not None:
                tokens, folded = ops.fold(tokens, choice.into, sizes[:, cls:])  # each of a token's rows with its like
                flat = flat.index_copy(0, token_rows.flatten(), tokens.flatten(0, 2))
                sizes = torch.cat([sizes[:, :cls], folded], 1)
                proportional |= given.scorer.proportional
            front = torch.arange(cls, device=token_rows.device).expand(len(token_rows), -1)
            kept = torch.cat([front, choice.kept + cls], 1)
            codes = codes.index_fill(0, as_they_came.flatten(), dropped)
            codes = codes.index_fill_(0, as_they_came.gather(1, kept).flatten(), LEFT)
            fault = _first_fault(given, group.fault, choice)
            group = Group(group.members, group.slots.gather(1, kept), sizes.gather(1, kept), fault)
            token_rows = token_rows.gather(1, choice.kept[..., None].expand(-1, -1, survivors.unit))
        groups.append(group)
        rows.append(token_rows)
    left = replace(survivors, groups=tuple(groups), codes=codes, pruned=True, proportional=proportional)
    return left, flat[survivors.rows_of(rows)].view(*hidden.shape[:-2], -1, hidden.shape[-1])


def show(given: StageInput, survivors: Survivors, number: int, hidden: Float[Tensor, "u n d"]) -> Pictures:
    """What the scorer sees of a group: its tokens, without CLS rows."""
    group, cls = survivors.groups[number], survivors.cls
    return Pictures(
        layer=given.layer,
        keep=given.stage.kept[number],
        tokens=group.slots[:, cls:] - cls,
        sizes=guard.own(group.sizes[:, cls:]),
        hidden=guard.own(hidden),
        read=given.states and partial(_mean_state, given.states, given.state_rows[number]),
        look=partial(given.grid, survivors.tokens_as_they_came[number]),
    )


def _mean_state(states: Callable[[str], Tensor], rows: Int[Tensor, "u n m"], name: str) -> Float[Tensor, "u n *w"]:
    return states(name)[rows].mean(2)


@torch.no_grad()
def choose(given: StageInput, seen: Pictures, hidden: Float[Tensor, "u n d"]) -> Choice:
    """Ask the scorer, and check what it says.

    Args:
        given: the stage.
        seen: what the scorer is shown.
        hidden: mean rows of each token. `seen` may hold a copy of them, which the scorer may have changed.

    Raises:
        ScorerError: it failed, changed what it was shown, or gave something of another kind, shape, device or dtype.
    """
    who, step = spell_scorer(given.stage.step, given.layer), given.stage.step
    ranking: object = guard.call(who, partial(given.scorer.rank, seen), (seen.tokens, seen.sizes, seen.hidden))
    if not isinstance(ranking, Ranking):
        raise ScorerError(f"{who} must give a Ranking, got {type(ranking).__name__}")
    scores, into = ranking.scores, ranking.into
    guard.check(who, "scores of every token", scores, seen.tokens, guard.NUMBERS)
    nan = scores.isnan().any(1)
    kept = scores.argsort(dim=1, descending=True, stable=True)[:, : seen.keep].sort().values
    if step.merge is None or not seen.keep:
        return Choice(kept, None, nan)
    into = _most_similar(hidden, kept) if into is None else into
    guard.check(who, "tokens to merge into", into, seen.tokens, (torch.long,))
    goes, lost = _destinations(into, kept)
    return Choice(kept, goes, nan, lost)


def _most_similar(hidden: Float[Tensor, "u n d"], kept: Int[Tensor, "u k"]) -> Int[Tensor, "u n"]:
    """The kept token with the most similar rows, for each token."""
    unit = functional.normalize(hidden.float(), dim=-1)
    among = unit.gather(1, kept[..., None].expand(-1, -1, unit.shape[-1]))
    return kept.gather(1, (unit @ among.mT).argmax(-1))


def _destinations(into: Int[Tensor, "u n"], kept: Int[Tensor, "u k"]) -> tuple[Int[Tensor, "u n"], Bool[Tensor, "u"]]:
    """Where each token goes, and which pictures have some that go into what is dropped or does not exist.

    What stays goes into itself, whatever the scorer says of it. An index that does not exist is clamped: on a GPU it
    would trip an assertion, after which the process can use that GPU no more, and the scorer would not be named.
    """
    there = into.clamp(0, into.shape[1] - 1)
    goes = there.scatter(1, kept, kept)
    stays = torch.zeros_like(goes, dtype=torch.bool).scatter(1, kept, True)
    return goes, (~stays.gather(1, goes) | ((there != into) & ~stays)).any(1)


def _first_fault(given: StageInput, fault: Int[Tensor, "u"], choice: Choice) -> Int[Tensor, "u"]:
    """The hole code of what was done wrong first to each picture, this stage included.

    Merging is looked at after NaN: where scores are NaN, nobody can say what is kept, so what goes into it is no fault.
    """
    fault = torch.where((fault == 0) & choice.nan, given.number(guard.NAN), fault)
    if choice.lost is None:
        return fault
    return torch.where((fault == 0) & choice.lost, given.number(guard.LOST), fault)


def states_of(adapter: VisionAdapter, tower: nn.Module, block: nn.Module, run: BlockRun) -> Callable[[str], Tensor]:
    """States of a block by name, for every row that left it; worked out when a scorer asks, once for all groups."""

    @cache
    def read() -> VisionBlock:
        return adapter.read(tower, block, run)

    def state(name: str) -> Tensor:
        states: Tensor = getattr(read(), name)
        return states.mean(0) if name == "keys" else states

    return state


def grid(
    adapter: VisionAdapter, tower: nn.Module, call: Call, counts: Sequence[int], tokens: Int[Tensor, "u n"]
) -> Int[Tensor, "u n 2"]:
    """Row and column of each of these tokens, counted in all that came, where pictures have so many tokens.

    The adapter is asked for projected rows, of which there is one for each token if nothing is dropped.
    """
    equal = len({*counts}) == 1
    places = adapter.places(tower, call, (len(counts), counts[0]) if equal else (sum(counts),))
    return places[:, 1:].to(tokens.device)[tokens]
