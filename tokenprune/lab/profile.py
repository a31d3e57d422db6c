"""A model's entropy by layer, its spectra and how sure its collapse layer is (arXiv 2602.17196, Fig. 2 and 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor, nn

from .. import ecl, ops
from ..errors import LayerError
from ..parts.adapter import Adapter

STATES = ("queries", "keys")
DRAWS = 2000
"""Bootstrap samples."""


def row(
    adapter: Adapter,
    decoder: nn.Module,
    visual: Callable[[], Bool[Tensor, "b s"]],
    run: Callable[[], object],
    layers: Sequence[int],
) -> dict[str, Any]:
    """One prompt's part, as JSON: per state the entropy (nats) of every block, and the eigenvalues of `layers`.

    Eigenvalues descend and sum to 1; block 1 is the first. Arguments as in `ecl.layer_spectra`.
    """
    spectra = ecl.layer_spectra(adapter, decoder, visual, run, STATES)
    return {
        "tokens": int(visual().sum(1).max()),
        "entropy": {
            state: [round(float(ops.spectral_entropy(each)), 6) for each in found] for state, found in spectra.items()
        },
        "spectra": {
            state: {str(layer): _plain(found[layer - 1].flip(0).clamp_min(0).numpy()) for layer in layers}
            for state, found in spectra.items()
        },
    }


def default_layers(depth: int) -> list[int]:
    """Blocks whose spectra are shown: the first three, and the quarters of the depth."""
    shown = {1, 2, 3, *(part * depth // 4 for part in (1, 2, 3, 4))}
    return sorted(layer for layer in shown if 1 <= layer <= depth)


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
                "spectra": {k: _plain(s / len(tokens)) for k, s in sums[state].items()},
            }
            for state in STATES
        },
    }


def stability(entropies: np.ndarray, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """The mean curve of `prompts x depth` entropies, its collapse layer, and both over bootstrap samples of prompts.

    Returns:
        `entropy` per block and its 95 % `interval`; and `ecl`: the `layer`, whether it is a collapse (`found`, see
        `ecl.Collapse`), the `drop` after it with its 95 % interval, the 95 % interval of the layer, the `share` of
        samples that give the same layer, and how many `prompts` alone give which.
    """
    prompts, depth = entropies.shape
    if depth < 2:
        raise LayerError(f"an entropy collapses from one block to the next: this model has {depth}")
    mean = entropies.mean(0)
    found = ecl.collapse(mean.tolist())
    layer = found.layer
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=draws) / prompts
    curves = weights @ entropies
    layers = [ecl.collapse(curve).layer for curve in curves.tolist()]
    alone = Counter(ecl.collapse(curve).layer for curve in entropies.tolist())
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return {
        "entropy": _plain(mean),
        "interval": [_plain(low), _plain(high)],
        "ecl": {
            "layer": layer,
            "found": found.found,
            "interval": np.quantile(layers, [0.025, 0.975], method="inverted_cdf").tolist(),
            "share": layers.count(layer) / draws,
            "prompts": {str(key): alone[key] for key in sorted(alone)},
            "drop": round(found.drop, 6),
            "drop_interval": _plain(np.quantile(curves[:, layer - 1] - curves[:, layer], [0.025, 0.975])),
        },
    }


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two spectra; the shorter one ends in zeros."""
    width = max(len(a), len(b))
    return np.pad(a, (0, width - len(a))) + np.pad(b, (0, width - len(b)))


def _plain(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
