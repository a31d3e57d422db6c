"""Pruned models as a model of lmms-eval: `--model tokenprune_hf --model_args pretrained=...,recipe=...`."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from ...amounts import Budget
from ...api import Pruning, attach
from ...errors import TokenpruneError
from ...model.anatomy import Anatomy
from ...recipe import RecipeLike
from ..loading import Loaded, load_model
from . import requests as asked
from .counts import Kept, log


class TokenpruneHf(lmms):  # type: ignore[misc]
    """A transformers model of a supported family, pruned by a recipe, answering in batches.

    Args:
        pretrained: a hub id, a local folder, or `pico`.
        recipe: name, YAML path, mapping or Recipe; without it nothing is pruned.
        overrides: settings of the recipe, a list or a string with spaces between them.
        budget: as in `tokenprune.prune`.
        batch_size: prompts per batch.
        device: such as `cuda` or `cpu`; the GPU if there is one. Of several processes each takes its own.
        dtype: as in `tokenprune generate`.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...
        max_num_frames: frames taken from each video.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        recipe: RecipeLike | None = None,
        overrides: str | Sequence[str] = (),
        budget: Budget | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        max_num_frames: int = 8,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            known = "recipe, overrides, budget, batch_size, device, dtype, attn_implementation, max_num_frames"
            raise TokenpruneError(f"model_args: expected pretrained, {known}, got {', '.join(sorted(unknown))}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise TokenpruneError(f"batch_size: expected a whole number from 1 on, got {batch_size!r}")
        if recipe is None and (overrides or budget is not None):
            raise TokenpruneError("model_args: overrides and budget need a recipe to change: add recipe=NAME")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size, self.frames = int(batch_size), max_num_frames
        if self._world_size > 1:
            device = str(self.accelerator.device)
        self._loaded: Loaded | None = load_model(pretrained, attn_implementation, dtype, device)
        self.device = self._loaded.model.device
        settings = overrides.split() if isinstance(overrides, str) else list(overrides)
        self._pruning: Pruning | None = None
        if recipe is not None:
            self._pruning = attach(self._loaded.model, recipe, *settings, budget=budget)
        self._ends_process = False

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> TokenpruneHf:
        """As lmms-eval's command makes its models.

        That command prints exceptions and exits with 0. A failed run must not look like a good one, so what goes wrong
        in a model made here ends the process.
        """
        with _ends_process():
            made = super().create_from_arg_string(arg_string, additional_config)
        made._ends_process = True
        return made

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        with _ends_process() if self._ends_process else nullcontext():
            return self._generate(requests)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not available."""
        return self._refuse("compares likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not available."""
        return self._refuse("asks several rounds")

    def clean(self) -> None:
        """Give the model's memory back, to a judge say; lmms-eval calls it after the last answer."""
        if self._pruning is not None:
            self._pruning.remove()
        self._pruning = self._loaded = None
        super().clean()

    def _refuse(self, what: str) -> NoReturn:
        with _ends_process() if self._ends_process else nullcontext():
            raise TokenpruneError(f"this task {what}; tokenprune_hf takes tasks of output_type generate_until only")

    def _generate(self, requests: Sequence[Any]) -> list[GenerationResult]:
        groups: dict[str, list[int]] = {}  # one batch, one way to generate
        for at, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(at)
        batches = [
            group[at : at + self.batch_size]
            for group in groups.values()
            for at in range(0, len(group), self.batch_size)
        ]
        found: dict[int, GenerationResult] = {}
        start = time.perf_counter()
        for batch in tqdm(batches, desc="answers", disable=self.rank != 0):
            found.update(zip(batch, self._answer([requests[at].args for at in batch]), strict=True))
        results = [found[at] for at in range(len(requests))]
        log(results, time.perf_counter() - start)
        return results

    def _answer(self, batch: Sequence[tuple[Any, ...]]) -> list[GenerationResult]:
        """Answers to requests with the same generation settings."""
        if self._loaded is None:
            raise TokenpruneError("this model was cleaned up after its run: make a new one")
        talks, images, videos = [], [], []
        for _, messages, _, number, task, split in batch:
            talk = ChatMessages(messages=messages(self.task_dict[task][split][number]))
            talks.append(talk.to_hf_messages())
            for part in (part for message in talk.messages for part in message.content):
                if part.type == "image":
                    images.append(asked.image(part.url))
                elif part.type == "video":
                    videos.append(asked.video(part, self.frames))
                elif part.type != "text":
                    raise TokenpruneError(f"task {task} shows {part.type}; tokenprune_hf takes pictures and videos")
        settings = batch[0][2]
        inputs = self._loaded.batch(talks, images, videos)
        with torch.inference_mode():
            output = self._loaded.model.generate(**inputs, **asked.generation(settings))
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = self._loaded.processor.batch_decode(new, skip_special_tokens=True)
        counts = self._counts(self._loaded, inputs, new, asked.beams(settings))
        return [
            GenerationResult(text=asked.until(text, settings), token_counts=count)
            for text, count in zip(texts, counts, strict=True)
        ]

    def _counts(self, loaded: Loaded, inputs: Mapping[str, torch.Tensor], new: torch.Tensor, beams: int) -> list[Kept]:
        """Of each row; its state is the first of its beams."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        given = mask.sum(1).tolist()
        visual = (Anatomy.of(loaded.model).visual(ids) & mask).sum(1).tolist()
        pad = loaded.processor.tokenizer.pad_token_id
        written = (new != (-1 if pad is None else pad)).sum(1).tolist()
        report = self._pruning.report() if self._pruning is not None else None
        counts = []
        for row, n in enumerate(visual):
            stages = {stage.layer: stage.kept[row * beams] for stage in report.stages} if report else {}
            average = report.average[row * beams] if report else float(n)
            counts.append(Kept(given[row], written[row], visual=n, stages=stages, average=average))
        return counts


@contextmanager
def _ends_process() -> Iterator[None]:
    """Exit with 1 and a traceback on any exception."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(f"error: {error}") from error
