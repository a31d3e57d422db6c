"""A model's entropy by layer, its spectra and how sure its collapse layer is (arXiv 2602.17196, Fig. 2 and 3)."""

from __future__ import annotations

from .bootstrap import DRAWS, stability
from .experiment import Asked, Profile, choose, measure
from .means import collapse_of, summary
from .rows import STATES, default_layers, row

__all__ = [
    "DRAWS",
    "STATES",
    "Asked",
    "Profile",
    "choose",
    "collapse_of",
    "default_layers",
    "measure",
    "row",
    "stability",
    "summary",
]
