"""Entropy of a layer, written out."""

from __future__ import annotations

import numpy as np
import torch


def explicit(states: torch.Tensor) -> float:
    """Eq. 1 and 4 in float64: the covariance of the unit-length centred rows, one outer product at a time."""
    rows = states.double().numpy()
    sigma = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows - rows.mean(0):
        sigma += np.outer(row, row) / (row @ row)
    s = np.linalg.eigvalsh(sigma / len(rows)).clip(1e-300)
    return float(-(s * np.log(s)).sum())
