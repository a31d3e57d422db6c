"""Figures of `profile`, `horizon`, `bench` and `sweep` as PNG bytes. Only here is matplotlib needed."""

from __future__ import annotations

from .base import COLORS, MARKERS, draw, missing, need
from .charts import bars, lines
from .entropies import entropy, spectra
from .information import heatmaps, horizon

__all__ = [
    "COLORS",
    "MARKERS",
    "bars",
    "draw",
    "entropy",
    "heatmaps",
    "horizon",
    "lines",
    "missing",
    "need",
    "spectra",
]
