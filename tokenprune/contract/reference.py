"""What the unpruned model answers where it does not see what was dropped: by whichever half of the oracle holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.anatomy import STATES, Anatomy
from ..state.view import View
from .families import Prompt
from ..verify.masking import hidden_by_mask
from ..verify.shortened import kept_columns, shortened


def reference(
    model: Any,
    inputs: Callable[[Sequence[Prompt]], Mapping[str, Tensor]],
    prompts: Sequence[Prompt],
    views: Mapping[int, View],
    answered: Callable[[Sequence[Prompt]], Tensor],
) -> Tensor:
    """The logits `steps b v` that `answered` gives, dropped tokens hidden by masks or taken out of each prompt."""
    mask = inputs(prompts)["attention_mask"]
    if STATES.isdisjoint(Anatomy.of(model).kinds):
        with hidden_by_mask(model, mask, views):
            return answered(prompts)
    alone = []
    for row, prompt in enumerate(prompts):
        length = int(mask[row].sum())
        with shortened(model, length, kept_columns(views, row, mask.shape[1] - length)):
            alone.append(answered([prompt]))
    return torch.cat(alone, dim=1)
