"""What recipes are explained on where nobody says. Without imports: the command line's help names it."""

from __future__ import annotations

SHAPE = "llava-1.5-7b"
"""Of a model; a number in a recipe's name is about its published tables too."""

TEXT = 64
"""Text tokens of a prompt."""
