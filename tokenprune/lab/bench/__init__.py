"""What a recipe saves on one prompt: time, memory and FLOPs, without and with pruning in turn (Table 5 of 2602.17196).

One run is a `generate`: it encodes the pictures, does one prefill and decodes; each is timed by itself, synchronised on
a GPU. FLOPs are said by formula and counted by torch; the time inside scorers is taken in runs of its own.
"""

from __future__ import annotations

from ..results import UNPRUNED
from .clock import Run
from .flops import Flops
from .measure import Bench
from .measured import Measured, Spread
from .page import HEADER, save, table
from .subject import Subject, at_random, of_a_picture
from .watch import Stopwatch, told, watched

__all__ = [
    "HEADER",
    "UNPRUNED",
    "Bench",
    "Flops",
    "Measured",
    "Run",
    "Spread",
    "Stopwatch",
    "Subject",
    "at_random",
    "of_a_picture",
    "save",
    "table",
    "told",
    "watched",
]
