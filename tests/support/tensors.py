"""Plain tensors, and what is computed of them the long way."""

from __future__ import annotations

import math

import numpy as np
import torch


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def greedy_max_min(features: np.ndarray, keep: int) -> list[int]:
    """DivPrune as its authors write it: nothing kept between steps, a taken token never again."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    distance = 1 - unit @ unit.T
    picked: list[int] = []
    for _ in range(keep):
        gaps = []
        for j in range(len(features)):
            others = picked or [i for i in range(len(features)) if i != j]
            gaps.append(-math.inf if j in picked else min((distance[i, j] for i in others), default=math.inf))
        picked.append(int(np.argmax(gaps)))
    return picked


def lattice(n: int, seed: int) -> torch.Tensor:
    """Vectors of sixteen +-1: their cosines are exact in float32, so ties are real ties."""
    return torch.randint(0, 2, (n, 16), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
