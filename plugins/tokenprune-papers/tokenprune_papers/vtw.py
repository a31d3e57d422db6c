"""VTW: the block after which all visual tokens may leave (arXiv 2405.05803)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

import tokenprune
from tokenprune.plan.cost import DecoderSize


@torch.no_grad()
def calibrate(
    model: nn.Module, prompts: Iterable[Mapping[str, Any]], eta: float = 0.003, first: int = 5
) -> dict[str, Any]:
    """VTW's layer for this model.

    It is the first one, from `first` on, whose next-token distribution is within `eta` of the unpruned one. Compared is
    the mean over prompts of KL(withdrawn || unpruned), in nats. One run per block and prompt.
    """
    depth = DecoderSize.of(model.config).depth
    if not (0 <= first < depth and eta >= 0):
        raise ValueError(f"first must be a layer of this model (0 to {depth - 1}) and eta >= 0, got {first} and {eta}")
    runs = []
    for inputs in prompts:
        full = _next_token(model, inputs)
        kl = []
        for layer in range(first, depth):
            with tokenprune.prune(model, _withdraw(layer)):
                withdrawn = _next_token(model, inputs)
            kl.append((withdrawn.exp() * (withdrawn - full)).sum(-1).mean())
        runs.append(torch.stack(kl).cpu())
    if not runs:
        raise ValueError("VTW is measured on prompts with pictures: give at least one")
    mean = torch.stack(runs).mean(0).tolist()
    near = [first + i for i, kl in enumerate(mean) if kl <= eta]
    if not near:
        raise ValueError(f"no layer comes within eta={eta}: the nearest has {min(mean):.2g}")
    return {"name": "vtw", **_withdraw(near[0])}


def _withdraw(layer: int) -> dict[str, Any]:
    schedule = {"name": "fixed", "layer": layer, "keep": 0}
    return {"prune": [{"scorer": {"name": "random", "seed": 0}, "schedule": schedule}]}


def _next_token(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
