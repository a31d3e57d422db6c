"""The demo as a web page: `compare` and `table` are what it says, `build` lays it out, `serve` shows it.

Only the last two need Gradio.
"""

from __future__ import annotations

from .comparison import LETTERS, Comparison, Side, compare, unknown_words
from .page import build
from .server import need, serve
from .settings import movable, upload
from .words import table

__all__ = [
    "LETTERS",
    "Comparison",
    "Side",
    "build",
    "compare",
    "movable",
    "need",
    "serve",
    "table",
    "unknown_words",
    "upload",
]
