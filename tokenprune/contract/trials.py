"""What a part does with real prompts: it is called inside a prefill, where everything it may read is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..api import prune
from ..builtin.schedules import Fixed
from ..errors import ScorerError
from ..parts.scorer import Scorer
from ..seen.prompt import Seen, Source
from ..seen.vision import Block, Vision
from .cases import Merging, layer_of
from .families import RAGGED, Family

KEEP = 5


class Words:
    """A processor as far as a scorer that reads the question needs one."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(f"word{number}" for number in ids)


@dataclass(frozen=True, eq=False)
class Tried:
    """One prompt, and what a part gave for it, by the name of the trial.

    Attributes:
        seen: the prompt.
        blocks: tower blocks that the part reads.
        given: what it gave, or what it raised; use `of`.
        changed: what it changed of what it was shown.
    """

    seen: Seen
    blocks: tuple[Block, ...]
    given: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.seen.visual)

    @property
    def order(self) -> Int[Tensor, "n"]:
        """Another order of the tokens."""
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(self.n))

    def add(self, trial: str, seen: Seen, part: Callable[[Seen], Any], **more: Tensor) -> None:
        """Call the part, and write down what comes of it."""
        before = self._shown(seen, more)
        try:
            self.given[trial] = part(seen)
        except Exception as error:
            self.given[trial] = error
        after = self._shown(replace(seen), more)  # nothing remembered
        self.changed[trial] = [name for name in before if not same(before[name], after[name])]

    def of(self, trial: str) -> Any:
        """What it gave. Raises what it raised."""
        found = self.given[trial]
        if isinstance(found, Exception):
            raise found
        return found

    def _shown(self, seen: Seen, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of all that it is shown, and torch's random state, which models sample with."""
        found = {"ids": seen.ids, "columns": seen.columns, "visual": seen.visual, "states": seen.states, **more}
        found["embeddings"] = seen.embeddings
        if seen.layer:
            found |= {name: getattr(seen, name) for name in ("queries", "keys", "values")}
        for block in self.blocks:
            found |= {f"tower {block}, keys": seen.vision.keys(block), f"tower {block}": seen.vision.features(block)}
        return {name: tensor.clone() for name, tensor in found.items()} | {"the random state": torch.get_rng_state()}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal, NaN for NaN."""
    return torch.equal(a, b) or (a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def listed(seen: Seen, states: Int[Tensor, "m"], places: Int[Tensor, "m"], keep: int) -> Seen:
    """The same prompt with other visual tokens: the states of some tokens at the places of others."""
    source = _Listed(seen.source, states, places)
    return replace(seen, keep=keep, visual=seen.visual[states], columns=seen.columns[places], source=source)


@dataclass(frozen=True, eq=False)
class _Listed:
    """A source whose vision tower sees other visual tokens; all else is as it was."""

    whole: Source
    states: Int[Tensor, "m"]
    places: Int[Tensor, "m"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def vision(self) -> Vision | None:
        whole = self.whole.vision()
        if whole is None:
            return None
        return Vision(whole.places[self.places], lambda name, block: whole.read(name, block)[self.states])


@dataclass(frozen=True, eq=False)
class _Probe(Scorer):
    """Tries something on every prompt, and keeps the first tokens."""

    blocks: tuple[Block, ...]
    attempt: Callable[[Tried], None]
    into: list[Tried]

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return self.blocks

    def score(self, seen: Seen) -> Tensor:
        tried = Tried(seen, self.blocks)
        self.attempt(tried)
        self.into.append(tried)
        return -seen.columns.float()


def watched(
    family: Family, dtype: torch.dtype, layer: int, blocks: tuple[Block, ...], attempt: Callable[[Tried], None]
) -> list[Tried]:
    """One prefill of a ragged batch: a trial for each of its prompts with pictures."""
    into: list[Tried] = []
    model = family.model(dtype=dtype)
    plan = {"scorer": _Probe(blocks, attempt, into), "schedule": Fixed(layer=layer, keep=KEEP)}
    try:
        with torch.no_grad(), prune(model, {"prune": [plan]}, processor=Words()):
            model(**family.given(RAGGED, dtype))
    except ScorerError as error:
        if "changed what it was shown" not in str(error):  # the engine's words for what `changed` says here
            raise
    return into


@cache
def scored(scorer: Scorer, family: Family, dtype: torch.dtype = torch.float32) -> list[Tried]:
    """What a scorer gives: `once`, `again`, `in another order`, for `tokens alike`, for `pairs` and for `one token`."""

    def attempt(tried: Tried) -> None:
        seen, n, every = tried.seen, tried.n, torch.arange(tried.n)
        tried.add("once", replace(seen), scorer.score)
        tried.add("again", replace(seen), scorer.score)
        tried.add("in another order", listed(seen, tried.order, tried.order, seen.keep), scorer.score)
        tried.add("tokens alike", listed(seen, torch.zeros_like(every), every, seen.keep), scorer.score)
        tried.add("pairs", listed(seen, every // 2, every, min(seen.keep, n - 1)), scorer.score)
        tried.add("one token", listed(seen, every[:1], every[:1], 0), scorer.score)

    return watched(family, dtype, layer_of(scorer), scorer.reads_blocks, attempt)


@cache
def merged(case: Merging, family: Family, dtype: torch.dtype = torch.float32) -> list[Tried]:
    """What a merger gives: `once`, `again`, with `nothing dropped`, with `nothing kept` and for `tokens alike`."""

    def attempt(tried: Tried) -> None:
        seen, every = tried.seen, torch.arange(tried.n)
        score = case.scorer.score(replace(seen))
        chosen = score.argsort(descending=True, stable=True)[: seen.keep].sort().values

        def add(trial: str, kept: Tensor, shown: Seen) -> None:
            hidden = shown.hidden.clone()
            tried.add(trial, shown, partial(case.merger.merge, hidden, kept), hidden=hidden, kept=kept, scores=score)

        seen = replace(seen, scores=score)
        add("once", chosen, replace(seen))
        add("again", chosen, replace(seen))
        add("nothing dropped", every, replace(seen, keep=tried.n))
        add("nothing kept", every[:0], replace(seen, keep=0))
        add("tokens alike", chosen, listed(seen, torch.zeros_like(every), every, seen.keep))

    blocks = (*case.scorer.reads_blocks, *case.merger.reads_blocks)
    return watched(family, dtype, layer_of(case.scorer, case.merger), blocks, attempt)
