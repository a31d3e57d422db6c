"""How sure a collapse layer is: over bootstrap samples of prompts, and in each prompt alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ... import ecl
from ...errors import LayerError

DRAWS = 2000
"""Bootstrap samples."""


def stability(entropies: np.ndarray, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """The mean curve of `prompts x depth` entropies, its collapse layer, and both over bootstrap samples of prompts.

    Returns:
        `entropy` per block and its 95 % `interval`; and `ecl`: the `layer`, whether it is a collapse (`found`, see
        `ecl.Collapse`), the `drop` after it with its 95 % interval, the 95 % interval of the layer, the `share` of
        samples that give the same layer, and how many `prompts` alone give which.

    Raises:
        LayerError: there is one block only.
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
        "entropy": plain(mean),
        "interval": [plain(low), plain(high)],
        "ecl": {
            "layer": layer,
            "found": found.found,
            "interval": np.quantile(layers, [0.025, 0.975], method="inverted_cdf").tolist(),
            "share": layers.count(layer) / draws,
            "prompts": {str(key): alone[key] for key in sorted(alone)},
            "drop": round(found.drop, 6),
            "drop_interval": plain(np.quantile(curves[:, layer - 1] - curves[:, layer], [0.025, 0.975])),
        },
    }


def plain(values: np.ndarray) -> list[float]:
    """Six digits of each, as JSON."""
    return [float(f"{value:.6g}") for value in values]
