"""One prompt's part of a profile: entropies and spectra of what its blocks computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ... import ecl, ops
from ...parts.adapter import Adapter
from .bootstrap import plain

STATES = ("queries", "keys")


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
            state: {str(layer): plain(found[layer - 1].flip(0).clamp_min(0).numpy()) for layer in layers}
            for state, found in spectra.items()
        },
    }


def default_layers(depth: int) -> list[int]:
    """Blocks whose spectra are shown: the first three, and the quarters of the depth."""
    shown = {1, 2, 3, *(part * depth // 4 for part in (1, 2, 3, 4))}
    return sorted(layer for layer in shown if 1 <= layer <= depth)
