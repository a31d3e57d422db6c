"""What is measured on a model: what schedules need to know of it, and what recipes are fitted with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor, nn

from .adapter import Adapter


@dataclass(frozen=True, eq=False)
class Sample:
    """One batch of prompts to measure a fact on.

    Attributes:
        run: one prefill, which gives the model's output. It drops nothing by itself, and may be called inside
            `tokenprune.prune`, unless a fact is measured in a model's first pruned prefill.
        visual: which columns of the decoder blocks hold visual tokens; asked while `run` runs.
    """

    run: Callable[[], Any]
    visual: Callable[[], Bool[Tensor, "b s"]]

    @classmethod
    def of(cls, model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> Sample:
        """Of model inputs with `input_ids`: logits of the last column, nothing kept."""
        run = partial(model, **inputs, use_cache=False, logits_to_keep=1)
        return cls(run, partial(adapter.visual, model.config, inputs["input_ids"]))


class Fact(ABC):
    """Something that is measured on a model's weights. A frozen dataclass: its fields are its settings.

    A schedule that `needs` it gets its value; `tokenprune calibrate --method NAME` measures it, and prints the recipe
    that is fitted with it if there is one.
    """

    about: ClassVar[str]
    """What it is, in words, for messages."""

    why_not_remembered: ClassVar[str] = ""
    """What stands behind "not remembered" where `remember` could not."""

    @abstractmethod
    def measure(self, model: nn.Module, adapter: Adapter, samples: Iterable[Sample]) -> Any:
        """Its value. Raises ValueError for settings that make no sense, or where `samples` do not tell."""

    def known(self, model: nn.Module, adapter: Adapter) -> Any | None:
        """Its value if exactly these weights were measured before, or None."""
        return None

    def remember(self, model: nn.Module, adapter: Adapter, value: Any) -> Path | None:
        """Keep a measured value for these weights, and where; None if that cannot be done."""
        return None

    def tell(self, value: Any) -> str:
        """A measured value, in words."""
        return str(value)

    def planned(self, value: Any) -> Any:
        """What schedules get of a measured value."""
        return value

    def example(self, depth: int) -> Any:
        """What schedules may get for a model of so many blocks, for tests of them."""
        return min(3, depth - 1)

    def recipe(self, value: Any) -> dict[str, Any] | None:
        """The recipe fitted with this value, as in YAML; None for what schedules need."""
        return None
