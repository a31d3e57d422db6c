"""Recipes for measuring: with a watch around their scorers, or told what they need to know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...parts.scheduler import PlanInput, Scheduler
from ...parts.scorer import Scorer, VisionScorer
from ...recipe import Recipe
from ...seen.pictures import Pictures, Ranking
from ...seen.prompt import Seen
from ...seen.vision import Block


@dataclass
class Stopwatch:
    """Adds up what happens inside scorers: seconds, and with `counting` FLOPs instead."""

    sync: Callable[[], object]
    counting: bool = False
    seconds: float = 0.0
    flops: int = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.counting:
            with FlopCounterMode(display=False) as counter:
                yield
            self.flops += counter.get_total_flops()
            return
        self.sync()
        start = time.perf_counter()
        yield
        self.sync()
        self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Watched(Scorer, VisionScorer):
    """A scorer whose calls are watched."""

    scorer: Any
    watch: Stopwatch

    @property
    def reads_blocks(self) -> tuple[Block, ...]:
        return self.scorer.reads_blocks

    @property
    def proportional(self) -> bool:
        return self.scorer.proportional

    def score(self, seen: Seen) -> torch.Tensor:
        with self.watch():
            return self.scorer.score(seen)

    def rank(self, pictures: Pictures) -> Ranking:
        with self.watch():
            return self.scorer.rank(pictures)


@dataclass(frozen=True)
class _Told(Scheduler):
    """A schedule that is told the facts it needs."""

    schedule: Scheduler
    facts: Mapping[str, Any]

    def plan(self, given: PlanInput) -> dict[int, int]:
        return self.schedule.plan(replace(given, facts=self.facts))


def watched(recipe: Recipe, watch: Stopwatch) -> Recipe:
    """The same recipe, each call of its scorers watched."""
    passes: list[Any] = []
    for step in recipe.passes:
        scorer: Any = Watched(step.scorer, watch)
        passes.append(replace(step, scorer=scorer))
    return replace(recipe, passes=tuple(passes))


def told(recipe: Recipe, facts: Mapping[str, Any]) -> Recipe:
    """The same recipe, its schedules told the facts that they need."""
    passes = (
        replace(step, schedule=_Told(step.schedule, facts)) if step.schedule.needs else step for step in recipe.passes
    )
    return replace(recipe, passes=tuple(passes))
