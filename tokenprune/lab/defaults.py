"""What recipes are explained on where nobody says. The command line's help names it, so nothing here needs torch."""

from __future__ import annotations

from ..plan.shapes import PUBLISHED

SHAPE = next(iter(PUBLISHED))
"""Of a model; a number in a recipe's name is about its published tables too."""

TEXT = 64
"""Text tokens of a prompt."""
