"""The demo: one picture, a question of each kind, and how recipes answer them at one budget."""

from __future__ import annotations

from .entropy import entropies, tell
from .shown import QUESTIONS, Shown, sheet
from .sides import BUDGET, RECIPES, RUNS, Side, compare, steps

__all__ = [
    "BUDGET",
    "QUESTIONS",
    "RECIPES",
    "RUNS",
    "Shown",
    "Side",
    "compare",
    "entropies",
    "sheet",
    "steps",
    "tell",
]
