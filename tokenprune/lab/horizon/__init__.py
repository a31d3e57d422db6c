"""How much a window of visual tokens still tells at each depth, and where nothing is left (arXiv 2512.07580).

The information of a window at layer L is p(only this window's visual tokens go on from layer L) - p(none does), where
p is the softmax probability of the token that begins the right answer. It needs answers, so it is for analysis and for
oracles; `layer: L` means, as everywhere, that the first L blocks see every token. Positions stay as they were.
"""

from __future__ import annotations

from .experiment import measure, prepare
from .found import Asked, Horizon
from .means import RULE, oracle_summary, strength, summary, vanishes
from .oracle import check_oracle, oracle_row
from .probe import GivenScores, information, logits, row
from .windows import Window, token_scores, windows

__all__ = [
    "RULE",
    "Asked",
    "GivenScores",
    "Horizon",
    "Window",
    "check_oracle",
    "information",
    "logits",
    "measure",
    "oracle_row",
    "oracle_summary",
    "prepare",
    "row",
    "strength",
    "summary",
    "token_scores",
    "vanishes",
    "windows",
]
