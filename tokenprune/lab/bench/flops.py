"""FLOPs of one prefill, by formula and as torch counts them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..loading import encode, without_pixels
from .watch import Stopwatch


@dataclass(frozen=True)
class Flops:
    """Of one prefill, decoder and head.

    Attributes:
        formula: `DecoderSize.prefill_flops` and the head's one row.
        counted: by `torch.utils.flop_counter`, scorers apart.
        scoring: counted inside scorers.
        tower: counted while pictures are encoded, scorers apart.
    """

    formula: int
    counted: int
    scoring: int
    tower: int


@torch.no_grad()
def count(
    model: Any, inputs: Mapping[str, Any], pruning: AbstractContextManager[object], watch: Stopwatch, formula: int
) -> Flops:
    """Encode the pictures and do one prefill inside `pruning`.

    Args:
        model: a transformers model.
        inputs: of one prompt.
        pruning: of the recipe whose scorers `watch` counts; a null context without one.
        watch: counting, new.
        formula: what the formula says, to stand beside it.
    """
    # fused attention is not counted on every device: written out it is
    with pruning, sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as tower:
            encoded = encode(model, dict(inputs))
        inside = watch.flops
        with FlopCounterMode(display=False) as prefill:
            model(**without_pixels(dict(inputs)), **encoded, use_cache=True, logits_to_keep=1)
    decoder = prefill.get_total_flops() - (watch.flops - inside)
    return Flops(formula, decoder, watch.flops, tower.get_total_flops() - inside)
