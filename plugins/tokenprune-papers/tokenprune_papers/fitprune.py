"""FitPrune: a table of how many tokens leave after each block, fitted to a model (arXiv 2409.10197)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import tokenprune
from tokenprune import Scorer, Seen
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


@torch.no_grad()
def calibrate(model: nn.Module, prompts: Iterable[Mapping[str, Any]], reduction: float = 0.6) -> dict[str, Any]:
    """FitPrune's table for this model: `reduction` is the share of the visual tokens' FLOPs to save.

    One run per block and prompt (of one row) reads the attention of the unpruned model; then a simulation searches for
    the share of both masses that may be lost in every block alike.
    """
    if not 0 < reduction < 1:
        raise ValueError(f"reduction must lie between 0 and 1, got {reduction}")
    sizes = DecoderSize.of(model.config)
    samples = []
    for inputs in prompts:
        watch = _Watch()
        for layer in range(1, sizes.depth):
            with tokenprune.prune(model, {"prune": [{"scorer": watch, "schedule": Fixed(layer, keep=0)}]}):
                model(**inputs, use_cache=False)
        samples.append(watch.found)
    if not samples or not all(samples):
        raise ValueError("FitPrune is fitted to prompts with pictures: give at least one")
    full = [len(sample[0][0]) for sample in samples]

    def cost(lost: list[list[int]]) -> float:
        """Mean share of the visual tokens' FLOPs that is left."""
        left = [[n - sum(gone[:block]) for block in range(sizes.depth)] for n, gone in zip(full, lost, strict=True)]
        pairs = zip(full, left, strict=True)
        shares = [sum(map(sizes.block_flops, row)) / sizes.block_flops(n) / sizes.depth for n, row in pairs]
        return sum(shares) / len(shares)

    low, high = 0.0, 1.0
    while high - low > 0.01:  # the released search
        middle = (low + high) / 2
        enough = cost([simulate(sample, middle) for sample in samples]) <= 1 - reduction
        low, high = (low, middle) if enough else (middle, high)
    lost = [simulate(sample, high) for sample in samples]
    n = round(sum(full) / len(full))
    shares = [sum(gone[i] / m for gone, m in zip(lost, full, strict=True)) / len(full) for i in range(sizes.depth - 1)]
    layers, keep, left = [], [], n
    for block, share in enumerate(shares, start=1):
        if gone := int(share * n + 1e-9):
            left -= gone
            layers.append(f"{block}/{sizes.depth}")
            keep.append(f"{left}/{n}")
    schedule = {"name": "table", "layers": layers, "keep": keep}
    return {"name": "fitprune", "prune": [{"scorer": {"name": "fitprune"}, "schedule": schedule}]}


def simulate(sample: list[tuple[Tensor, Tensor]], alpha: float) -> list[int]:
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
