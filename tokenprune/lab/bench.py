"""What a recipe saves on one prompt: time, memory and FLOPs, without and with pruning in turn (Table 5 of 2602.17196).

One run is a `generate`: it encodes the pictures, does one prefill and decodes; each is timed by itself, synchronised on
a GPU. FLOPs are said by formula and counted by torch; the time inside scorers is taken in runs of its own.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from ..amounts import Budget
from ..api import Pruning, prune
from ..errors import TokenpruneError
from ..outputs import write_all
from ..parts.scheduler import PlanInput, Scheduler
from ..parts.scorer import Scorer, VisionScorer
from ..plan.cost import MIB, DecoderSize
from ..recipe import Recipe, RecipeLike, load
from ..registry import registry
from ..seen.pictures import Pictures, Ranking
from ..seen.prompt import Seen
from ..seen.vision import Block
from . import plots
from .loading import encode, without_pixels
from .results import markdown

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Run:
    """One run: milliseconds, the KV cache after the prefill (text too), and the most GPU memory held at once."""

    tower_ms: float
    prefill_ms: float
    decode_ms_per_token: float
    total_ms: float
    kv_mib: float
    peak_mib: float | None


@dataclass(frozen=True)
class Spread:
    """Of one quantity over the runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Flops:
    """Of one prefill, decoder and head.

    Attributes:
        formula: `DecoderSize.prefill_flops` and the head's one row.
        counted: by `torch.utils.flop_counter`, scorers apart.
        scoring: counted inside scorers.
        tower: counted while pictures are encoded, scorers apart.
    """

    formula: int
    counted: int
    scoring: int
    tower: int


@dataclass(frozen=True)
class Measured:
    """One recipe, or nothing pruned.

    Attributes:
        name: as given.
        plan: `{layer: visual tokens kept}`.
        average: visual tokens, as a mean over the decoder blocks.
        spread: of each field of `Run`, over the runs; none for memory that is not known.
        tower_speed_up: unpruned / pruned encoding of the pictures, the median over pairs of neighbouring runs.
        speed_up: the same of the prefill.
        total_speed_up: the same of the whole run.
        tower_bound: what `tower_speed_up` would be if time were FLOPs, scorers apart: unpruned / pruned, counted.
        bound: the same of `speed_up`, by formula.
        scoring_share: time inside scorers as a share of the pruned prefill, in runs of their own; of tower and prefill
            together where the recipe prunes inside the tower.
        flops: see there.
    """

    name: str
    plan: dict[int, int]
    average: float
    spread: dict[str, Spread | None]
    tower_speed_up: float
    speed_up: float
    total_speed_up: float
    tower_bound: float
    bound: float
    scoring_share: float
    flops: Flops

    def median(self, key: str) -> float:
        """Of a field of `Run`."""
        spread = self.spread[key]
        return spread.median if spread is not None else float("nan")


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
class _Watched(Scorer, VisionScorer):
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
    passes: list[Any] = [replace(step, scorer=_Watched(step.scorer, watch)) for step in [*recipe.passes]]  # type: ignore
    return replace(recipe, passes=tuple(passes))


def told(recipe: Recipe, facts: Mapping[str, Any]) -> Recipe:
    """The same recipe, its schedules told the facts that they need."""
    passes = (
        replace(step, schedule=_Told(step.schedule, facts)) if step.schedule.needs else step for step in recipe.passes
    )
    return replace(recipe, passes=tuple(passes))


class _Clock(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing: reads the time after the prefill and after every decode step, and the cache's size before."""

    def __init__(self, now: Callable[[], float], cache: DynamicCache) -> None:
        self.now, self.cache = now, cache
        self.times: list[float] = []
        self.kv = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(self.now())
        if len(self.times) == 1:
            held = (part for layer in self.cache.layers for part in (layer.keys, layer.values))
            self.kv = sum(part.numel() * part.element_size() for part in held)
        return scores


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
        config = self.model.config
        self.geometry = DecoderSize.of(config)
        ids = self.inputs["input_ids"]
        self.visual = int(registry().adapter(config).visual(config, ids).sum())
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
        names = [UNPRUNED, *_names(recipes, built)]
        forms: list[Pruning | None] = [None, *(self._prune(one, budget) for one in built)]
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
        scoring = [0.0, *self._scoring(built, budget, runs)]
        done()
        counts = [self._flops(one, budget, plan) for one, plan in zip([None, *built], plans, strict=True)]
        done()
        return [
            self._put_together(names[i], plans[i], found[0], found[i], scoring[i], counts[0], counts[i])
            for i in range(len(forms))
        ]

    @staticmethod
    def rounds(runs: int) -> int:
        """Calls of `done`."""
        return runs + 3

    @torch.no_grad()
    def run(self, pruning: Pruning | None = None, new_tokens: int | None = None) -> Run:
        """One run, timed by phase."""
        length = new_tokens or self.new_tokens
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        clock = _Clock(self._now, cache)
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

    @torch.no_grad()
    def _flops(self, recipe: Recipe | None, budget: Budget | None, plan: Mapping[int, int]) -> Flops:
        head = 2 * self.model.get_output_embeddings().weight.numel()
        formula = self.geometry.prefill_flops(plan, self.visual, self.text) + head
        watch = Stopwatch(self.sync, counting=True)
        pruned = nullcontext() if recipe is None else self._prune(watched(recipe, watch), budget)
        # fused attention is not counted on every device: written out it is
        with pruned, sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as tower:
                encoded = encode(self.model, dict(self.inputs))
            inside = watch.flops
            with FlopCounterMode(display=False) as all_:
                self.model(**without_pixels(dict(self.inputs)), **encoded, use_cache=True, logits_to_keep=1)
        decoder = all_.get_total_flops() - (watch.flops - inside)
        return Flops(formula, decoder, watch.flops, tower.get_total_flops() - inside)

    def _put_together(
        self,
        name: str,
        plan: dict[int, int],
        whole: list[Run],
        runs: list[Run],
        scoring: float,
        full: Flops,
        flops: Flops,
    ) -> Measured:
        spread: dict[str, Spread | None] = {}
        for key in (entry.name for entry in fields(Run)):
            values = [value for run in runs if (value := getattr(run, key)) is not None]
            spread[key] = Spread.of(values) if values else None
        pairs = list(zip(whole, runs, strict=True))
        return Measured(
            name=name,
            plan=plan,
            average=sum(self.geometry.tokens(plan, self.visual)) / self.geometry.depth,
            spread=spread,
            tower_speed_up=statistics.median(a.tower_ms / b.tower_ms for a, b in pairs),
            speed_up=statistics.median(a.prefill_ms / b.prefill_ms for a, b in pairs),
            total_speed_up=statistics.median(a.total_ms / b.total_ms for a, b in pairs),
            tower_bound=full.tower / flops.tower,
            bound=full.formula / flops.formula,
            scoring_share=scoring,
            flops=flops,
        )


def _names(recipes: Sequence[RecipeLike], built: Sequence[Recipe]) -> list[str]:
    return [given if isinstance(given, str) else one.name for given, one in zip(recipes, built, strict=True)]


HEADER = [
    *("recipe", "tokens", "tower ms", "tower speed-up", "prefill ms", "speed-up", "bound", "of bound", "scoring"),
    *("decode ms/token", "total ms", "total speed-up", "KV MiB", "peak MiB", "GFLOPs", "counted"),
]


def table(found: Sequence[Measured]) -> list[list[str]]:
    """Lines below `HEADER`: medians, with the lowest and highest prefill."""
    lines = []
    for one in found:
        prefill, peak = one.spread["prefill_ms"], one.spread["peak_mib"]
        assert prefill is not None
        lines.append(
            [
                one.name,
                f"{one.average:.1f}",
                f"{one.median('tower_ms'):.1f}",
                f"{one.tower_speed_up:.2f}x of {one.tower_bound:.2f}x",
                f"{prefill.median:.1f} ({prefill.low:.1f}-{prefill.high:.1f})",
                f"{one.speed_up:.2f}x",
                f"{one.bound:.2f}x",
                f"{one.speed_up / one.bound:.0%}",
                f"{one.scoring_share:.1%}",
                f"{one.median('decode_ms_per_token'):.2f}",
                f"{one.median('total_ms'):.0f}",
                f"{one.total_speed_up:.2f}x",
                f"{one.median('kv_mib'):.2f}",
                "n/a" if peak is None else f"{peak.median:.0f}",
                f"{one.flops.formula / 1e9:.2f}",
                f"{one.flops.counted / one.flops.formula - 1:+.2%}",
            ]
        )
    return lines


NOTES = """
Medians over {runs} rounds, in each of which all forms ran in turn; prefill with its lowest and highest. Speed-ups are
medians over the pairs of one round. `bound`: unpruned / pruned FLOPs of decoder and head, and for the tower those that
torch counts. `scoring`: time inside scorers, from runs of their own, as a share of the pruned prefill (of tower and
prefill, where the recipe prunes inside the tower). `KV MiB`: all that the cache held after the prefill.
`GFLOPs`: of the prefill, by formula; `counted`: how far torch's counter is from that, scorers apart. `peak MiB` is
known on GPUs. Answers have {new_tokens} tokens, whatever they say.
"""


def save(found: Sequence[Measured], folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """JSON, Markdown and, where there is matplotlib, a picture; returns what was written."""
    rows = [{**asdict(one), "plan": {str(layer): kept for layer, kept in one.plan.items()}} for one in found]
    listed = "".join(f"- {key}: {value}\n" for key, value in settings.items() if value is not None)
    notes = NOTES.format(**settings)
    phases = {
        "tower": [one.median("tower_ms") for one in found],
        "prefill": [one.median("prefill_ms") for one in found],
        "decode": [one.median("decode_ms_per_token") * (settings["new_tokens"] - 1) for one in found],
    }
    ratios = {"measured": [one.speed_up for one in found], "bound of the FLOPs": [one.bound for one in found]}
    labels = (f"milliseconds, {settings['new_tokens']} tokens", "prefill, times as fast as unpruned")
    results = {
        "bench.json": json.dumps({"settings": dict(settings), "rows": rows}, indent=1) + "\n",
        "bench.md": f"# {settings['model']}\n\n{listed}\n{markdown(HEADER, table(found))}{notes}",
    }
    picture = partial(plots.bars, [one.name for one in found], phases, ratios, labels, str(settings["model"]))
    return [*write_all(folder, results), *write_all(folder, plots.draw({"bench.png": picture}))]
