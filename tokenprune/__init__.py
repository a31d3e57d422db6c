"""tokenprune: drop visual tokens inside multimodal LLMs on stock Hugging Face transformers.

with tokenprune.prune(model, "entropyprune") as pruning:
    out = model.generate(**inputs)
print(pruning.report())
"""

from __future__ import annotations

from .api import Pruning, attach, prune
from .errors import TokenpruneError
from .hookspecs import hookimpl
from .interfaces import Adapter, Calibration, Merger, Scheduler, Scorer
from .recipe import Pass, Recipe
from .values import Seen, Shape

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Calibration",
    "Merger",
    "Pass",
    "Pruning",
    "Recipe",
    "Scheduler",
    "Scorer",
    "Seen",
    "Shape",
    "TokenpruneError",
    "attach",
    "hookimpl",
    "prune",
]
