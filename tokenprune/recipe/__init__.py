"""Recipes: YAML -> frozen objects."""

from __future__ import annotations

from .loading import MAX_BYTES, load, presets, registered, source
from .overrides import BUDGETS
from .values import SCORERS, Pass, Recipe, RecipeLike, Step, VisionPass

__all__ = [
    "BUDGETS",
    "MAX_BYTES",
    "SCORERS",
    "Pass",
    "Recipe",
    "RecipeLike",
    "Step",
    "VisionPass",
    "load",
    "presets",
    "registered",
    "source",
]
