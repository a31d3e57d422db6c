"""A model, one prompt for it, and rounds in which it runs without and with pruning in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList

from ...amounts import Budget
from ...api import Pruning, prune
from ...errors import TokenpruneError
from ...model.anatomy import Anatomy
from ...plan.cost import MIB, DecoderSize
from ...recipe import Recipe, RecipeLike, load
from ..loading import encode, without_pixels
from ..results import UNPRUNED
from .clock import Clock, Run
from .flops import Flops, count
from .measured import Form, Measured
from .watch import Stopwatch, told, watched


@dataclass
class Bench:
    """A model, one prompt for it, and how to run it.

    Args:
        model: a transformers model.
        inputs: of one prompt with pictures or videos.
        new_tokens: answers have this many, whatever they say: at least two.
        processor: as in `prune`.
    """

    model: Any
    inputs: Mapping[str, Any]
    new_tokens: int = 16
    processor: Any = None
    sync: Callable[[], object] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.inputs["input_ids"]) != 1:
            raise TokenpruneError(f"expected the inputs of one prompt, got {len(self.inputs['input_ids'])}")
        if self.new_tokens < 2:
            raise TokenpruneError(
                f"expected two new tokens or more, got {self.new_tokens}: the prefill gives the first"
            )
        self.sync = torch.cuda.synchronize if self._cuda else lambda: None
        self.geometry = DecoderSize.of(self.model.config)
        ids = self.inputs["input_ids"]
        self.visual = int(Anatomy.of(self.model).visual(ids).sum())
        self.text = ids.shape[1] - self.visual

    @property
    def _cuda(self) -> bool:
        return self.model.device.type == "cuda"

    def measure(
        self,
        recipes: Sequence[RecipeLike],
        *,
        runs: int = 7,
        budget: Budget | None = None,
        ecl: int | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> list[Measured]:
        """Nothing pruned and every recipe in turn, after one round to warm up.

        Args:
            recipes: as in `prune`.
            runs: counted rounds; every round starts with another one.
            budget: as in `prune`, for all recipes.
            ecl: the Entropy Collapse Layer, where it should not be looked up or measured.
            done: called after each round, `rounds(runs)` times.

        Raises what `prune` and a pruned prefill raise.
        """
        built = [load(recipe) if ecl is None else told(load(recipe), {"ecl": ecl}) for recipe in recipes]
        names = [given if isinstance(given, str) else one.name for given, one in zip(recipes, built, strict=True)]
        found, plans = self._rounds([None, *(self._prune(one, budget) for one in built)], runs, done)
        scoring = [0.0, *self._scoring(built, budget, runs)]
        done()
        counts = [self._flops(one, budget, plan) for one, plan in zip([None, *built], plans, strict=True)]
        done()
        forms = [Form(*one) for one in zip([UNPRUNED, *names], plans, found, scoring, counts, strict=True)]
        return [Measured.of(form, forms[0], self.geometry, self.visual) for form in forms]

    @staticmethod
    def rounds(runs: int) -> int:
        """Calls of `done`."""
        return runs + 3

    def _rounds(
        self, forms: Sequence[Pruning | None], runs: int, done: Callable[[], object]
    ) -> tuple[list[list[Run]], list[dict[int, int]]]:
        """The counted runs of each form, and its plan, which the round that warms up says."""
        found: list[list[Run]] = [[] for _ in forms]
        plans: list[dict[int, int]] = [{} for _ in forms]
        for round_ in range(runs + 1):
            for i in (*range(round_ % len(forms), len(forms)), *range(round_ % len(forms))):
                run = self.run(forms[i])
                if round_:
                    found[i].append(run)
                elif (pruning := forms[i]) is not None:
                    plans[i] = {stage.layer: stage.kept[0] for stage in pruning.report().stages}
            done()
        return found, plans

    @torch.no_grad()
    def run(self, pruning: Pruning | None = None, new_tokens: int | None = None) -> Run:
        """One run, timed by phase."""
        length = new_tokens or self.new_tokens
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        clock = Clock(self._now, cache)
        with nullcontext() if pruning is None else pruning:
            start = self._now()
            encoded = encode(self.model, dict(self.inputs))
            seen = self._now()
            self.model.generate(
                **without_pixels(dict(self.inputs)),
                **encoded,
                past_key_values=cache,
                logits_processor=LogitsProcessorList([clock]),
                do_sample=False,
                min_new_tokens=length,
                max_new_tokens=length,
            )
        first, last = clock.times[0], clock.times[-1]
        peak = torch.cuda.max_memory_allocated() / MIB if self._cuda else None
        return Run(
            tower_ms=1000 * (seen - start),
            prefill_ms=1000 * (first - seen),
            decode_ms_per_token=1000 * (last - first) / (length - 1),
            total_ms=1000 * (last - start),
            kv_mib=clock.kv / MIB,
            peak_mib=peak,
        )

    def _prune(self, recipe: Recipe, budget: Budget | None) -> Pruning:
        return prune(self.model, recipe, budget=budget, processor=self.processor)

    def _now(self) -> float:
        self.sync()
        return time.perf_counter()

    def _scoring(self, recipes: Sequence[Recipe], budget: Budget | None, runs: int) -> list[float]:
        """Medians of the share of the prefill that is spent inside scorers, in runs with a watch around them."""
        watch = Stopwatch(self.sync)
        forms = [self._prune(watched(one, watch), budget) for one in recipes]
        shares: list[list[float]] = [[] for _ in forms]
        for _ in range(runs + 1):
            for recipe, found, pruning in zip(recipes, shares, forms, strict=True):
                watch.seconds = 0.0
                run = self.run(pruning, new_tokens=2)
                found.append(1000 * watch.seconds / (run.prefill_ms + (run.tower_ms if recipe.vision_passes else 0)))
        return [statistics.median(found[1:]) for found in shares]

    def _flops(self, recipe: Recipe | None, budget: Budget | None, plan: Mapping[int, int]) -> Flops:
        head = 2 * self.model.get_output_embeddings().weight.numel()
        watch = Stopwatch(self.sync, counting=True)
        pruning = nullcontext() if recipe is None else self._prune(watched(recipe, watch), budget)
        formula = self.geometry.prefill_flops(plan, self.visual, self.text) + head
        return count(self.model, self.inputs, pruning, watch, formula)
