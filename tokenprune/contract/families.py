"""Families for the contract to run parts in: tiny random models, and batches of prompts with pictures and text."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..builtin.plugin import tokenprune_adapters
from ..errors import TokenpruneError
from ..families.forms import CORE
from ..parts.adapter import Adapter
from ..parts.tiny import DEPTH, IMAGE, PAD, VIDEO, VOCAB, Tiny, text_config, vision_config
from ..registry import registry

__all__ = [
    "BATCHES", "DEPTH", "EVERY", "FAMILIES", "IMAGE", "MIXED", "ONE", "PAD", "PADDED", "RAGGED", "VIDEO", "VOCAB",
    "Family", "Prompt", "Tiny", "answer", "build", "forget", "has_video", "inputs", "logits", "model", "shipped",
    "text_config", "vision_config",
]  # fmt: skip

# A prompt is a seed and its segments: a number of text tokens, "image" or "video".
Prompt = tuple[int, tuple[int | str, ...]]

ONE: list[Prompt] = [(1, (3, "image", 9))]
PADDED: list[Prompt] = [(1, (3, "image", 9)), (2, (2, "image", 4))]
RAGGED: list[Prompt] = [(3, (2, "image", 3, "image", 5)), (2, (7,)), (1, (4, "image", 9))]
MIXED: list[Prompt] = [(4, (2, "image", 3, "video", 5)), (1, (4, "image", 9)), (5, (2, "video", 3))]
BATCHES = {"one": ONE, "padded": PADDED, "ragged": RAGGED}


_TINY = {tiny.name: tiny for adapter in tokenprune_adapters().values() for tiny in adapter.tiny}
FAMILIES = CORE
"""Names of the tiny models that every part is tested in."""
EVERY = tuple(_TINY)
"""Names of the tiny models of all families that have a file."""


def build(family: str) -> Any:
    """The model as transformers makes it, weights random."""
    return _TINY[family].build()


def inputs(family: str, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch; the attention mask is always there, as from a processor."""
    return _batch(_TINY[family], prompts)


def has_video(family: str) -> bool:
    return _TINY[family].video


def _batch(tiny: Tiny, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    media: dict[str, list[Tensor]] = {}
    rows = []
    for seed, segments in prompts:
        generator = torch.Generator().manual_seed(seed)
        row: list[int] = []
        for i, segment in enumerate(segments):
            if isinstance(segment, int):
                row += torch.randint(10, VOCAB, (segment,), generator=generator).tolist()
                continue
            tokens, made = tiny.media(segment, 100 * seed + i)
            row += [IMAGE if segment == "image" else VIDEO] * tokens if isinstance(tokens, int) else tokens
            for name, value in made.items():
                media.setdefault(name, []).append(value)
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    found = {"input_ids": ids, "attention_mask": mask, **{name: torch.cat(values) for name, values in media.items()}}
    if tiny.types is not None:
        text, image, video = tiny.kinds
        kinds = torch.full_like(ids, text, dtype=torch.int32)
        found[tiny.types] = kinds.masked_fill(ids == IMAGE, image).masked_fill(ids == VIDEO, video)
    return found


@dataclass(frozen=True)
class Family:
    """A family for the contract to run parts in.

    Attributes:
        name: shows in the names of tests.
        build: makes a tiny model with random weights, at least four decoder blocks deep.
        inputs: model inputs of a left-padded batch of prompts, with `input_ids` and `attention_mask`.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[[Sequence[Prompt]], dict[str, Tensor]]

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        """One model per attention and dtype, with the same weights."""
        return _model(self, attention, dtype)

    def given(self, prompts: Sequence[Prompt], dtype: torch.dtype = torch.float32) -> Mapping[str, Tensor]:
        """`inputs` with pixels of a dtype."""
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.inputs(prompts).items()}


@cache
def family_of(tiny: Tiny) -> Family:
    """A tiny model that an adapter brings."""
    return Family(tiny.name, tiny.build, partial(_batch, tiny))


def shipped() -> list[Family]:
    """The families that every part is tested in."""
    return [family_of(_TINY[name]) for name in CORE]


def named(family: str | Family) -> Family:
    """A family given as MODULE:NAME. Raises TokenpruneError."""
    if isinstance(family, Family):
        return family
    module, _, name = family.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TokenpruneError(f"there is no family {family!r} ({error}): give MODULE:NAME of a Family") from error
    if not isinstance(found, Family):
        raise TokenpruneError(f"{family} must be a tokenprune.contract.families.Family, got {type(found).__name__}")
    return found


def adapter_of(family: Family) -> type[Adapter] | None:
    """The class that is registered for its model type, or None."""
    with suppress(TokenpruneError):
        return type(registry().adapter(family.model().config))
    return None


def model(family: str, attention: str = "sdpa") -> Any:
    """One model per family and attention, with the same weights."""
    return family_of(_TINY[family]).model(attention)


def forget() -> None:
    """Make every model anew when it is next asked for: somebody changed weights."""
    _model.cache_clear()


@cache
def _model(family: Family, attention: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    made = family.build().eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():  # larger weights: answers that vary
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(4)
    if dtype != made.dtype:  # a needless cast would make complex rotary tables real
        made.to(dtype)
    if attention != "sdpa":  # which a model is made with, where it can: decoders with capped logits stay eager
        made.set_attn_implementation(attention)
    made.generation_config.eos_token_id = None  # never stops early: lengths stay comparable
    made.generation_config.pad_token_id = PAD
    return made


@torch.no_grad()
def answer(family: str, attention: str, prompts: Sequence[Prompt], steps: int = 6, **more: Any) -> Any:
    """Greedy generation with the logits of every step: `.sequences`, `.logits` (tuple of b x vocab)."""
    given = inputs(family, prompts)
    return model(family, attention).generate(
        **given,
        max_new_tokens=steps,
        **{"do_sample": False, "return_dict_in_generate": True, "output_logits": True, **more},
    )


def logits(answered: Any) -> Tensor:
    """b x steps x vocab."""
    return torch.stack(answered.logits, dim=1)
