"""What the rows of all prompts say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ... import ecl
from .bootstrap import plain, stability
from .rows import STATES


def summary(rows: Iterable[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """What the rows of all prompts say together, read once and in order; memory does not grow with their spectra.

    Entropies and eigenvalues (by rank) are means over prompts. See `stability` for what `ecl` holds.
    """
    tokens: list[int] = []
    entropies: dict[str, list[list[float]]] = {state: [] for state in STATES}
    sums: dict[str, dict[str, np.ndarray]] = {state: {} for state in STATES}
    for each in rows:
        tokens.append(each["tokens"])
        for state in STATES:
            entropies[state].append(each["entropy"][state])
            for layer, spectrum in each["spectra"][state].items():
                sums[state][layer] = _add(sums[state].get(layer, np.zeros(0)), np.array(spectrum))
    return {
        "prompts": len(tokens),
        "tokens": [min(tokens), max(tokens)],
        "depth": len(entropies[STATES[0]][0]),
        "states": {
            state: {
                **stability(np.array(entropies[state]), seed),
                "spectra": {k: plain(s / len(tokens)) for k, s in sums[state].items()},
            }
            for state in STATES
        },
    }


def collapse_of(found: Mapping[str, Any], state: str) -> ecl.Collapse:
    """The collapse layer that a state of a `summary` says."""
    said = found["states"][state]["ecl"]
    return ecl.Collapse(said["layer"], found["depth"], said["drop"], said["found"])


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two spectra; the shorter one ends in zeros."""
    width = max(len(a), len(b))
    return np.pad(a, (0, width - len(a))) + np.pad(b, (0, width - len(b)))
