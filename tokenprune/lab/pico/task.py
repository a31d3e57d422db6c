"""pico's questions as a task: how many a model answers exactly, pruned or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch

from ...amounts import Budget
from ...api import prune
from ...model.anatomy import Anatomy
from ...recipe import RecipeLike
from ..loading import Loaded, encode, without_pixels
from .scenes import KINDS, Scene, held_out

NEW_TOKENS = 8  # the longest answer has four


@dataclass(frozen=True)
class Answers:
    """What was said, by kind of question and in the order of the scenes, and what it cost.

    Attributes:
        said: answers.
        right: whether each is exactly the right one, case and a final stop aside.
        average: visual tokens of a prompt, as a mean over decoder blocks and prompts.
        flops_share: of the decoder's prefill, as a mean over prompts.
        layers: those after which tokens were dropped.
    """

    said: dict[str, list[str]]
    right: dict[str, list[bool]]
    average: float
    flops_share: float
    layers: list[int]

    @property
    def accuracy(self) -> dict[str, float]:
        """Share of right answers of each kind, and of `all`."""
        every = [one for right in self.right.values() for one in right]
        return {**{kind: fmean(right) for kind, right in self.right.items()}, "all": fmean(every)}


class Task:
    """The first `limit` held-out scenes of a seed, one question of each kind about each, ready for a model.

    A batch holds one kind of question about many pictures, so that nothing is padded and answers end together;
    its pictures are encoded once for all kinds.
    """

    def __init__(self, loaded: Loaded, limit: int, seed: int, batch: int = 64) -> None:
        self.loaded = loaded
        self.scenes = list(islice(held_out(seed), limit))
        self._batches = [self._prepare(self.scenes[at : at + batch]) for at in range(0, limit, batch)]

    def __len__(self) -> int:
        return len(self._batches)

    def _prepare(self, scenes: list[Scene]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Model inputs of the pictures, and of the questions by kind."""
        texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for scene in scenes:
            for question in scene.questions:
                texts[question.kind].append(self.loaded.chat(question.text, images=1))
        shown = [scene.picture for scene in scenes]
        processor, options = self.loaded.processor, {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        inputs = {kind: dict(processor(images=shown, text=text, **options)) for kind, text in texts.items()}
        return inputs[KINDS[0]], {kind: without_pixels(given) for kind, given in inputs.items()}

    @torch.no_grad()
    def answer(
        self,
        recipe: RecipeLike | None = None,
        *overrides: str,
        budget: Budget | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> Answers:
        """Ask everything; `done` is called after each batch. Raises what `prune` and a pruned prefill raise."""
        model, device = self.loaded.model, self.loaded.model.device
        said: dict[str, list[str]] = {kind: [] for kind in KINDS}
        averages, shares, layers = [], [], set[int]()
        pruning = (
            None if recipe is None else prune(model, recipe, *overrides, budget=budget, processor=self.loaded.processor)
        )
        with nullcontext() if pruning is None else pruning:
            for pictures, questions in self._batches:
                encoded = encode(model, {name: value.to(device) for name, value in pictures.items()})
                for kind, text in questions.items():
                    given = {name: value.to(device) for name, value in text.items()}
                    out = model.generate(**given, **encoded, max_new_tokens=NEW_TOKENS, do_sample=False)
                    new = out[:, given["input_ids"].shape[1] :]
                    said[kind] += self.loaded.processor.batch_decode(new, skip_special_tokens=True)
                    if pruning is not None:
                        report = pruning.report()
                        averages += report.average
                        shares += [report.flops_share] * len(new)
                        layers |= {stage.layer for stage in report.stages}
                done()
        if pruning is None:
            averages, shares = [self.visual], [1.0]
        return Answers(said, self.right(said), fmean(averages), fmean(shares), sorted(layers))

    @property
    def visual(self) -> int:
        """Visual tokens of the first prompt."""
        ids = self._batches[0][1][KINDS[0]]["input_ids"][:1]
        return int(Anatomy.of(self.loaded.model).visual(ids).sum())

    def right(self, said: dict[str, list[str]]) -> dict[str, list[bool]]:
        """Whether each answer is exactly the right one, case and a final stop aside."""
        truth: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for scene in self.scenes:
            for question in scene.questions:
                truth[question.kind].append(question.answer)
        return {
            kind: [
                answer.strip().rstrip(".").lower() == right
                for answer, right in zip(said[kind], truth[kind], strict=True)
            ]
            for kind in KINDS
        }
