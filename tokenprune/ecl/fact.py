"""The Entropy Collapse Layer as a fact that schedules need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import nn

from ..model.anatomy import Anatomy
from ..model.ranks import Ranks
from ..parts.adapter import Adapter
from ..parts.fact import Fact, Sample
from . import memory
from .measure import Collapse, collapse, layer_entropies


@dataclass(frozen=True)
class Curves:
    """Matrix entropy of the visual tokens' queries, block by block, in nats: one curve per sample."""

    samples: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(fmean(values) for values in zip(*self.samples, strict=True))

    @property
    def collapse(self) -> Collapse:
        """Of the mean curve."""
        return collapse(self.mean)


@dataclass(frozen=True)
class EntropyCollapse(Fact):
    """The layer after which the entropy of visual tokens collapses (arXiv 2602.17196, section 3.3)."""

    about = "the Entropy Collapse Layer"
    why_not_remembered = " (cache not writable, or weights offloaded)"

    def known(self, model: nn.Module, adapter: Adapter) -> int | None:
        return memory.known(model, adapter)

    def measure(self, model: nn.Module, adapter: Adapter, samples: Iterable[Sample]) -> Curves:
        decoder, ranks = Anatomy.of(model, adapter).decoder, Ranks.of(model)
        curves = (layer_entropies(adapter, decoder, one.visual, one.run, ranks=ranks) for one in samples)
        return Curves(tuple(map(tuple, curves)))

    def remember(self, model: nn.Module, adapter: Adapter, value: Curves) -> Path | None:
        return memory.remember(model, adapter, value.mean)

    def tell(self, value: Curves) -> str:
        return f"{value.collapse.tell()}; the schedule `ecl` prunes there"

    def planned(self, value: Curves) -> int:
        return value.collapse.layer
