"""FitPrune: a table of how many tokens leave after each block, fitted to a model (arXiv 2409.10197)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import tokenprune
from tokenprune import Adapter, Fact, Sample, Scorer, Seen
from tokenprune.builtin.schedules import Fixed
from tokenprune.plan.cost import DecoderSize

ROWS = 256  # query rows at once: their attention over all columns is in memory


def received(seen: Seen, rows: Int[Tensor, "r"]) -> Float[Tensor, "n"]:
    """Attention that each visual token gets from query rows: the largest over heads, summed over rows."""
    return torch.stack([seen.attention(some).amax(0).sum(0) for some in rows.split(ROWS)]).sum(0)


def masses(seen: Seen) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Attention from the text after the picture, and from the visual tokens (their mean)."""
    return received(seen, seen.words), received(seen, seen.visual) / len(seen.visual)


@dataclass(frozen=True)
class FitPrune(Scorer):
    """Keep the tokens that both the text and the other visual tokens attend to (arXiv 2409.10197)."""

    equivariant = True

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        cross, own = masses(seen)
        return cross * own


@dataclass(frozen=True)
class _Watch(Scorer):
    """Writes down both masses of what it sees."""

    found: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def score(self, seen: Seen) -> Float[Tensor, "n"]:
        cross, own = masses(seen)
        self.found.append((cross.double().cpu(), own.double().cpu()))
        return cross


@dataclass(frozen=True)
class Fit(Fact):
    """FitPrune's table for a model.

    One run per block and prompt (of one row) reads the attention of the unpruned model; then a simulation searches for
    the share of both masses that may be lost in every block alike.

    Args:
        reduction: the share of the visual tokens' FLOPs to save.
    """

    about = "FitPrune's table of how many tokens leave after each block"
    reduction: float = 0.6

    @torch.no_grad()
    def measure(self, model: nn.Module, adapter: Adapter, samples: Iterable[Sample]) -> dict[str, Any]:
        """The table as a schedule in YAML."""
        if not 0 < self.reduction < 1:
            raise ValueError(f"reduction must lie between 0 and 1, got {self.reduction}")
        sizes = DecoderSize.of(model.config)
        watched = [_watched(model, sample, sizes.depth) for sample in samples]
        if not watched or not all(watched):
            raise ValueError("FitPrune is fitted to prompts with pictures: give at least one")
        full = [len(sample[0][0]) for sample in watched]
        low, high = 0.0, 1.0
        while high - low > 0.01:  # the released search
            middle = (low + high) / 2
            enough = _left([simulate(sample, middle) for sample in watched], full, sizes) <= 1 - self.reduction
            low, high = (low, middle) if enough else (middle, high)
        return _table([simulate(sample, high) for sample in watched], full, sizes.depth)

    def recipe(self, value: dict[str, Any]) -> dict[str, Any]:
        return {"name": "fitprune", "prune": [{"scorer": {"name": "fitprune"}, "schedule": value}]}


Masses = list[tuple[Tensor, Tensor]]
"""Of one prompt, block after block."""


def _watched(model: nn.Module, sample: Sample, depth: int) -> Masses:
    watch = _Watch()
    for layer in range(1, depth):
        with tokenprune.prune(model, {"prune": [{"scorer": watch, "schedule": Fixed(layer, keep=0)}]}):
            sample.run()
    return watch.found


def _left(lost: list[list[int]], full: list[int], sizes: DecoderSize) -> float:
    """Mean share of the visual tokens' FLOPs that is left where so many are lost in each block."""
    left = [[n - sum(gone[:block]) for block in range(sizes.depth)] for n, gone in zip(full, lost, strict=True)]
    pairs = zip(full, left, strict=True)
    shares = [sum(map(sizes.block_flops, row)) / sizes.block_flops(n) / sizes.depth for n, row in pairs]
    return sum(shares) / len(shares)


def _table(lost: list[list[int]], full: list[int], depth: int) -> dict[str, Any]:
    """The mean over prompts, as a schedule in YAML."""
    n = round(sum(full) / len(full))
    shares = [sum(gone[i] / m for gone, m in zip(lost, full, strict=True)) / len(full) for i in range(depth - 1)]
    layers, keep, left = [], [], n
    for block, share in enumerate(shares, start=1):
        if gone := int(share * n + 1e-9):
            left -= gone
            layers.append(f"{block}/{depth}")
            keep.append(f"{left}/{n}")
    return {"name": "table", "layers": layers, "keep": keep}


def simulate(sample: Masses, alpha: float) -> list[int]:
    """Tokens lost in each block: those of both the smallest cross and the smallest self mass.

    The rest must hold `1 - alpha` of the mass that all tokens have in that block of the unpruned model.
    """
    alive = torch.ones(len(sample[0][0]), dtype=torch.bool)
    lost = []
    for masses_here in sample:
        gone = alive.clone()
        for mass in masses_here:
            order = mass.masked_fill(~alive, float("inf")).argsort(stable=True)[: int(alive.sum())]
            rest = mass[order].flip(0).cumsum(0).flip(0) - mass[order]
            small = torch.zeros_like(alive).index_fill(0, order[rest >= mass.sum() * (1 - alpha)], True)
            gone &= small
        alive &= ~gone
        lost.append(int(gone.sum()))
    return lost
