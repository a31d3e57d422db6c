"""What passes inside the vision tower left: its holes are taken out of the prompt before block 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import PromptError
from ..plan.stages import Stage
from ..recipe import VisionPass
from ..state.prompt import Prompt
from ..state.view import View
from ..vision.forward import VisionPruner
from .narrow import gathered
from .run import ForwardPass

Left = Sequence[tuple[VisionPass, tuple[int, ...]]]
"""By layer of the tower, which pass dropped tokens there, and how many visual tokens it left of each prompt."""


def remove_holes(
    forward: ForwardPass, vision: VisionPruner, hidden: Float[Tensor, "b s d"], kwargs: Any
) -> Float[Tensor, "b j d"]:
    """Before block 0: take the holes out, and plan the decoder's stages for the tokens that are left.

    The tower's stages are those before layer 0: its last one, before the projector, has the number -1.
    """
    prompt = forward.prompt
    gone, left = vision.read(hidden, prompt.visual.to(hidden.device))
    stages, views, local = _narrowed(prompt, vision.depth, gone, left)
    counts = stages[max(stages)].kept if stages else prompt.counts
    stages.update(forward.pipeline.stages(counts, before_vision=prompt.counts))
    forward.prompt = prompt.after_vision(stages, views)
    forward.until = 0
    if max(stages, default=-1) >= 0:
        forward.embedded = hidden.masked_fill((gone < vision.depth)[..., None], 0)
    if local is None:
        return hidden
    _refuse_lost_answers(prompt, gone < vision.depth)
    hidden = gathered(hidden, forward.prompt.view_at(-1), local)
    return hidden


def _narrowed(
    prompt: Prompt, depth: int, gone: Int[Tensor, "b s"], left: Left
) -> tuple[dict[int, Stage], dict[int, View], Int[Tensor, "b j"] | None]:
    """Stages and views of a tower so deep, and the columns of the prompt that the last view holds; None for all.

    `gone` says before which of its layers each column went.
    """
    full, before, local = prompt.full_view.to(gone.device), prompt.counts, None
    stages: dict[int, Stage] = {}
    views: dict[int, View] = {}
    for layer, (step, kept) in enumerate(left):
        if kept != before:
            lengths = [every - n + k for every, n, k in zip(full.lengths, prompt.counts, kept, strict=True)]
            views[layer - depth], local = full.narrow(full.valid & (gone > layer), lengths)
            stages[layer - depth] = Stage(step, before, kept, vision_layer=layer)
            before = kept
    return stages, views, local


def _refuse_lost_answers(prompt: Prompt, gone: Tensor) -> None:
    """Raise PromptError if a prompt ends with its picture and the tower dropped the last token of that.

    One more sync, but prompts that end so are rare.
    """
    if not any(prompt.ends_with_picture):
        return
    columns = torch.arange(gone.shape[1], device=prompt.visual.device)
    last = torch.where(prompt.visual, columns, 0).amax(1)
    went = gone.gather(1, last.to(gone.device)[:, None])[:, 0]
    if (went & torch.tensor(prompt.ends_with_picture, device=gone.device)).any():
        raise PromptError(
            "a prompt ends with its picture, and passes inside the vision tower dropped the last of its "
            "tokens, from which the answer is read: let words follow the picture"
        )
