"""Whether the entropy of one prompt collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ... import ecl
from ...model.anatomy import Anatomy
from ..loading import Loaded


@torch.inference_mode()
def entropies(loaded: Loaded, inputs: Mapping[str, Any]) -> list[float]:
    """Matrix entropy of this prompt's visual tokens by layer, in nats, unpruned."""
    anatomy = Anatomy.of(loaded.model)
    visual = partial(anatomy.visual, inputs["input_ids"])
    prefill = partial(loaded.model, **inputs, logits_to_keep=1)
    return ecl.layer_entropies(anatomy.adapter, anatomy.decoder, visual, prefill)


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
