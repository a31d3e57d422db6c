"""One forward pass through the decoder, phase by phase: the table of contents.

`before_model` finds the prompt that starts here, or the one that owns the cache; `before_block` prunes where a stage is
and hands every block the mask and rotary tables of what it sees; `after_decoder` gives the output the length the caller
expects; `after_model` lets the cache own the prompt. Decode steps pass through the same phases, where only masks are
made anew, and only if something is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import PromptError, UnsupportedModelError
from ..model.anatomy import Anatomy
from ..parts import guard
from ..state import cache as caches
from ..state.prompt import Prompt
from . import facts, holes, inputs, narrow, visibility
from .inputs import PassInput
from .pipeline import Pipeline
from .run import ForwardPass


def before_model(pipeline: Pipeline, given: PassInput) -> ForwardPass:
    """The pass that begins: columns with visual tokens make a Prompt, a later step finds it in its cache.

    Raises:
        PromptError: pruning cannot follow these inputs.
        LayerError, BudgetError: the recipe cannot be planned for them.
    """
    if given.ids is None:
        assert given.earlier is not None
        return ForwardPass(pipeline, given, given.earlier, cache=given.cache)
    columns = inputs.locate(given, pipeline.anatomy)
    if any(columns.counts):
        facts.learn(pipeline, given, columns.visual)
    drafts = given.drafts
    if any(n and drafts > text for n, text in zip(columns.counts, columns.question, strict=True)):
        drafts = 0  # logits of more than the picture's last token are asked for: nobody drafted that
    prompt = Prompt(
        ids=given.ids,
        visual=columns.visual,
        full_view=columns.view,
        counts=columns.counts,
        question=columns.question,
        stages={} if pipeline.vision is not None else pipeline.stages(columns.counts),  # else `remove_holes` plans
        start=given.start,
        earlier=given.earlier,
        drafts=drafts,
        bare=not given.fed and any(columns.counts),
    )
    if prompt.stages:
        _refuse_recomputation(pipeline.anatomy)
    return ForwardPass(pipeline, given, prompt, prefill=True, cache=given.cache)


def _refuse_recomputation(anatomy: Anatomy) -> None:
    """Gradient checkpointing runs blocks again in the backward pass; later transformers leave hooks out of that."""
    checkpointed = any(block.training and getattr(block, "gradient_checkpointing", False) for block in anatomy.blocks)
    if checkpointed and torch.is_grad_enabled() and "__call__" in vars(GradientCheckpointingLayer):
        raise UnsupportedModelError(
            "under gradient checkpointing this transformers runs hooks a second time, without their prompt: "
            "call model.gradient_checkpointing_disable(), or install a later transformers"
        )


def capture(forward: ForwardPass) -> None:
    """Keep what stages of this prefill may look at: what enters block 0, and of the block before each stage its
    projections and its arguments.

    The model computes these anyway; references are kept, and no longer than the stage needs.
    """
    taps, prompt, anatomy = forward.taps, forward.prompt, forward.pipeline.anatomy
    assert taps is not None

    def enter(args: Any, kwargs: Any) -> None:
        forward.embedded = args[0]

    def keep_arguments(layer: int, args: Any, kwargs: Any) -> None:
        forward.entering[layer] = kwargs

    def keep(layer: int, name: str, output: Tensor) -> None:
        forward.captured.setdefault(layer, {})[name] = output

    if prompt.stages and forward.pipeline.vision is None:  # else `remove_holes` keeps what enters
        taps.before(anatomy.blocks[0], enter, first=True)
    for layer in prompt.stages:
        if layer > 0:
            taps.before(anatomy.blocks[layer - 1], partial(keep_arguments, layer), first=True)
            attention = anatomy.attention(layer - 1)
            for name, module in (attention.modules if attention else {}).items():
                taps.after(module, partial(keep, layer, name))


def before_block(
    forward: ForwardPass, number: int, hidden: Float[Tensor, "b k d"], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...] | None:
    """Prune if a stage is here; then let the block see its view and nothing else. None: as the model has it.

    Args:
        args: by position, behind the hidden states.
    """
    forward.cache = kwargs.get("past_key_values", forward.cache)
    entered = hidden
    if forward.prefill:
        vision = forward.pipeline.vision if number == 0 else None
        if vision is not None or number == min(forward.prompt.stages, default=None):
            _check_blocks(forward, hidden, kwargs)
        if vision is not None:
            hidden = holes.remove_holes(forward, vision, hidden, kwargs)
            capture(forward)
        if number in forward.prompt.stages:
            hidden = narrow.prune(forward, number, hidden, kwargs)
    seen = visibility.arguments(forward, number, hidden, args, kwargs)
    if seen is None:
        return None if hidden is entered else ((hidden, *args), kwargs)
    return (hidden, *seen[0]), seen[1]


def _check_blocks(forward: ForwardPass, hidden: Float[Tensor, "b s d"], kwargs: Mapping[str, Any]) -> None:
    """Refuse what the model made for its blocks, where pruning cannot go on from it."""
    width, tables = hidden.shape[1], kwargs.get("position_embeddings")
    first = tables[0] if isinstance(tables, tuple | list) else tables
    if isinstance(first, Tensor) and first.shape[-2] != width:
        raise PromptError(
            f"the model made rotary tables of {first.shape[-2]} columns for {width} new ones, which no block can use: "
            "pass position_ids of the new columns"
        )
    mask = kwargs.get("attention_mask")
    if isinstance(mask, BlockMask):
        reason = (
            "this decoder's masks are not causal, and those of flex attention cannot be followed: use sdpa or eager"
        )
        columns = torch.arange(width - 1, device=hidden.device) + forward.prompt.start
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        later = mask.mask_mod(rows, torch.zeros_like(rows), columns, columns + 1)
        forward.flags.append((PromptError(reason), ~later.any()))


def after_decoder(forward: ForwardPass, output: Any) -> Any:
    """The decoder's output at the length that the caller expects; None leaves it."""
    if not forward.prefill or not forward.prompt.views:
        return None
    return narrow.restored(output, forward.prompt, forward.pipeline.anatomy.depth)


def after_model(forward: ForwardPass) -> None:
    """The pass is over: the cache owns the prompt, and parts that broke their word are told.

    Raises:
        ScorerError, PromptError: what could not be asked before without waiting for the device.
    """
    if forward.answering:
        forward.prompt = forward.prompt.without_answering(forward.answering)
    if forward.prefill and forward.cache is not None:
        caches.own(forward.cache, forward.prompt)
    guard.settle(forward.flags if forward.prompt.views else ())
