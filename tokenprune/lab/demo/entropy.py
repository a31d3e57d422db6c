"""Whether the entropy of one prompt collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import ecl
from ...model.anatomy import Anatomy
from ...parts.fact import Sample
from ..loading import Loaded


def entropies(loaded: Loaded, inputs: Mapping[str, Any]) -> tuple[float, ...]:
    """Matrix entropy of this prompt's visual tokens by layer, in nats, unpruned."""
    adapter = Anatomy.of(loaded.model).adapter
    sample = Sample.of(loaded.model, adapter, inputs)
    return ecl.EntropyCollapse().measure(loaded.model, adapter, [sample]).mean


def tell(entropies: Sequence[float]) -> str:
    """Whether the entropy of this prompt collapses, in a sentence."""
    found = ecl.collapse(entropies)
    if found.found:
        return f"Entropy of this picture's visual tokens collapses: {found.tell()}."
    return (
        f"Entropy of this picture's visual tokens goes from {entropies[0]:.2f} to {entropies[-1]:.2f} nats over the "
        f"{found.depth} layers and does not collapse (its steepest drop: {found.drop:.2f} nats after layer "
        f"{found.layer}), so the paper's rule for the layer has nothing to hold on to here."
    )
