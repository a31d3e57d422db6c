"""Every combination of settings, one row each: accuracy, tokens, FLOPs. Rows are written as they are done."""

from __future__ import annotations

from .combining import Combination, combinations, split
from .rows import Asking, Row, run
from .tables import as_csv, plot, save, table

__all__ = ["Asking", "Combination", "Row", "as_csv", "combinations", "plot", "run", "save", "split", "table"]
