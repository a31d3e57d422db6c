"""Built-in schedules: pure functions of what a schedule may know."""

from __future__ import annotations

from .ecl import Ecl
from .fixed import Fixed
from .pyramid import Pyramid
from .spread import Spread
from .table import Table

__all__ = ["Ecl", "Fixed", "Pyramid", "Spread", "Table"]
