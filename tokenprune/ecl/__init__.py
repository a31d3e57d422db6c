"""The Entropy Collapse Layer (arXiv 2602.17196, section 3.3): measured, looked up, remembered."""

from __future__ import annotations

from .fact import Curves, EntropyCollapse
from .measure import Collapse, collapse, layer_entropies, layer_spectra
from .memory import fingerprint, known, remember, shipped

__all__ = [
    "Collapse",
    "Curves",
    "EntropyCollapse",
    "collapse",
    "fingerprint",
    "known",
    "layer_entropies",
    "layer_spectra",
    "remember",
    "shipped",
]
