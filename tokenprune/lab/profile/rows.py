"""One prompt's part of a profile: entropies and spectra of what its blocks computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import ecl, ops
from ...model.anatomy import Anatomy
from ...parts.fact import Sample
from .bootstrap import plain

STATES = ("queries", "keys")


def row(anatomy: Anatomy, sample: Sample, layers: Sequence[int]) -> dict[str, Any]:
    """One prompt's part, as JSON: per state the entropy (nats) of every block, and the eigenvalues of `layers`.

    Eigenvalues descend and sum to 1; block 1 is the first.
    """
    spectra = ecl.layer_spectra(anatomy.adapter, anatomy.decoder, sample.visual, sample.run, STATES)
    return {
        "tokens": int(sample.visual().sum(1).max()),
        "entropy": {
            state: [round(float(ops.spectral_entropy(each)), 6) for each in found] for state, found in spectra.items()
        },
        "spectra": {
            state: {str(layer): plain(found[layer - 1].flip(0).clamp_min(0).numpy()) for layer in layers}
            for state, found in spectra.items()
        },
    }


def default_layers(depth: int) -> list[int]:
    """Blocks whose spectra are shown: the first three, and the quarters of the depth."""
    shown = {1, 2, 3, *(part * depth // 4 for part in (1, 2, 3, 4))}
    return sorted(layer for layer in shown if 1 <= layer <= depth)
