"""VTW: the block after which all visual tokens may leave (arXiv 2405.05803)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import tokenprune
from tokenprune import Adapter, Fact, Sample
from tokenprune.plan.cost import DecoderSize


@dataclass(frozen=True)
class Withdrawal(Fact):
    """VTW's layer: the first one whose next-token distribution is near the unpruned one.

    Compared is the mean over prompts of KL(withdrawn || unpruned), in nats. One run per block and prompt.

    Args:
        eta: how near.
        first: the first layer that may be it.
    """

    about = "the layer where VTW withdraws visual tokens"
    eta: float = 0.003
    first: int = 5

    @torch.no_grad()
    def measure(self, model: nn.Module, adapter: Adapter, samples: Iterable[Sample]) -> int:
        depth, eta, first = DecoderSize.of(model.config).depth, self.eta, self.first
        if not (0 <= first < depth and eta >= 0):
            raise ValueError(
                f"first must be a layer of this model (0 to {depth - 1}) and eta >= 0, got {first} and {eta}"
            )
        runs = []
        for sample in samples:
            full = _next_token(sample)
            kl = []
            for layer in range(first, depth):
                with tokenprune.prune(model, _withdraw(layer)):
                    withdrawn = _next_token(sample)
                kl.append((withdrawn.exp() * (withdrawn - full)).sum(-1).mean())
            runs.append(torch.stack(kl).cpu())
        if not runs:
            raise ValueError("VTW is measured on prompts with pictures: give at least one")
        mean = torch.stack(runs).mean(0).tolist()
        near = [first + i for i, kl in enumerate(mean) if kl <= eta]
        if not near:
            raise ValueError(f"no layer comes within eta={eta}: the nearest has {min(mean):.2g}")
        return near[0]

    def recipe(self, value: int) -> dict[str, Any]:
        return {"name": "vtw", **_withdraw(value)}


def _withdraw(layer: int) -> dict[str, Any]:
    schedule = {"name": "fixed", "layer": layer, "keep": 0}
    return {"prune": [{"scorer": {"name": "random", "seed": 0}, "schedule": schedule}]}


def _next_token(sample: Sample) -> torch.Tensor:
    return sample.run().logits[:, -1].double().log_softmax(-1)
