"""One question about one picture, answered without and with pruning."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ... import ecl
from ...amounts import Budget
from ...api import Pruning, prune
from ...errors import PromptError
from ...model.anatomy import Anatomy
from ...parts.fact import Sample
from ...recipe import RecipeLike, load
from ...show.html import SHORTEST
from ...show.report import StageReport
from .. import plots
from .. import profile as profiles
from ..bench import UNPRUNED, Bench
from ..loading import Loaded

LETTERS = 2000  # of a question
ROUNDS = 3  # timed pairs, after one to warm up


@dataclass(frozen=True)
class Side:
    """One way to answer. `tokens` are visual ones, as a mean over the decoder blocks; KV is theirs."""

    name: str
    answer: str
    tokens: float
    kv_mib: float
    flops_share: float
    prefill_ms: float


@dataclass(frozen=True)
class Comparison:
    """One question about one picture, without and with pruning.

    Attributes:
        question: as asked.
        unknown: words of it that the tokenizer has no token for.
        visual: visual tokens of the prompt.
        sides: unpruned, pruned.
        stages: what was dropped where.
        figures: per stage what is left and the scores, each with its caption; the picture if nothing was dropped.
        entropy: entropy of the visual tokens by layer, the Entropy Collapse Layer marked.
        collapse: that layer in words.
    """

    question: str
    unknown: list[str]
    visual: int
    sides: tuple[Side, Side]
    stages: list[StageReport]
    figures: list[tuple[Image.Image, str]]
    entropy: Image.Image
    collapse: str

    @property
    def percent(self) -> int:
        """Visual tokens that a decoder block sees on average, of 100."""
        return round(100 * self.sides[1].tokens / self.visual)


def compare(
    loaded: Loaded,
    picture: Image.Image,
    question: str,
    recipe: RecipeLike,
    *overrides: str,
    budget: Budget | None = None,
) -> Comparison:
    """Answer a question about a picture without and with pruning. Raises what `prune` and a pruned prefill raise."""
    question = question.strip()
    if not 0 < len(question) <= LETTERS:
        raise PromptError(f"expected a question of 1 to {LETTERS} letters, got {len(question)}")
    pruning = prune(loaded.model, load(recipe, *overrides), budget=budget, processor=loaded.processor)
    inputs = loaded.inputs(question, [picture])
    with pruning:
        pruned = loaded.answer(inputs)
    report = pruning.report()
    one = Bench(loaded.model, inputs, new_tokens=2, processor=loaded.processor)
    before, after = _prefill_ms(one, pruning)
    name = recipe if isinstance(recipe, str) else load(recipe).name
    figures = _figures(pruning, report.stages, picture, inputs) or [(_enlarged(picture), f"all {one.visual} tokens")]
    entropy, collapse = _entropy(loaded, inputs)
    sides = (
        Side(UNPRUNED, loaded.answer(inputs), one.visual, report.kv_mib.full, 1.0, before),
        Side(name, pruned, report.average[0], report.kv_mib.pruned, report.flops_share, after),
    )
    return Comparison(
        question, unknown_words(loaded, question), one.visual, sides, report.stages, figures, entropy, collapse
    )


def _figures(
    pruning: Pruning, stages: Sequence[StageReport], picture: Image.Image, inputs: Mapping[str, Any]
) -> list[tuple[Image.Image, str]]:
    """What is left after each stage, and its scores where they are kept."""
    figures = []
    for stage in stages:
        for what in (f"{stage.kept[0]} left", "scores") if stage.vision_layer is None else (f"{stage.kept[0]} left",):
            drawn = pruning.overlay(picture, inputs, stage=stage.layer, scores=what == "scores")
            figures.append((_enlarged(drawn), f"{stage.where}: {what}"))
    return figures


def _prefill_ms(bench: Bench, pruning: Pruning) -> tuple[float, float]:
    """Medians of neighbouring runs without and with pruning."""
    pairs = [(bench.run().prefill_ms, bench.run(pruning).prefill_ms) for _ in range(ROUNDS + 1)][1:]
    before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
    return before, after


def unknown_words(loaded: Loaded, question: str) -> list[str]:
    """Words of a question that the tokenizer has no token for."""
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return []
    return [word for word in question.split() if unknown in tokenizer(word, add_special_tokens=False).input_ids]


def _entropy(loaded: Loaded, inputs: Mapping[str, Any]) -> tuple[Image.Image, str]:
    """The figure of this prompt, and its collapse layer beside the model's in words."""
    anatomy = Anatomy.of(loaded.model)
    row = profiles.row(anatomy, Sample.of(loaded.model, anatomy.adapter, inputs), layers=[])
    found = profiles.summary([row], seed=0)
    known, alone = ecl.known(loaded.model, anatomy.adapter), profiles.collapse_of(found, "queries")
    layer = "has no layer of this model yet" if known is None else f"prunes this model at layer {known}"
    words = f"The schedule ecl {layer}. In this prompt alone: {alone.tell()}."
    queries = {**found, "states": {"queries": found["states"]["queries"]}}
    figure = plots.entropy(queries, "entropy of the visual tokens", known, (5, 3.2))
    return Image.open(io.BytesIO(figure)), words


def _enlarged(picture: Image.Image) -> Image.Image:
    """A small picture with its pixels as squares, as in reports."""
    times = -(-SHORTEST // min(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
