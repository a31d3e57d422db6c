"""What a block sees: the causal mask over the columns it holds, and the rotary tables of those that enter it.

Blocks hold different columns of one conversation, so each gets a mask of its own width. Columns keep the positions
that they had, so a table row goes with its column; only where a stage says `positions: compact` does the decoder make
tables anew, for positions that lag behind by how many were freed before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import create_causal_mask

from .. import ops
from ..errors import PromptError
from ..parts.attention import RotaryTables
from ..state import cache as caches
from .run import ForwardPass, Held, Mask


def arguments(
    forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """A block's arguments with what it sees and nothing else; None where that is all there is.

    The same for every block up to the next stage. position_ids stay away from the blocks: flash attention would read
    their gaps as packed sequences.
    """
    if block >= forward.until:
        forward.until = forward.prompt.next_stage(block, forward.pipeline.anatomy.depth)
        forward.changed = _changed(forward, block, hidden, kwargs)
    return None if forward.changed is None else {**kwargs, **forward.changed}


def _changed(
    forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    layers = forward.prompt.view_layers(block)
    if not any(layer is not None for layer in layers):
        return None
    made = rotary(forward, block, hidden, kwargs) if layers not in forward.rotary else forward.rotary[layers]
    forward.rotary[layers] = made
    return {"attention_mask": mask(forward, block, hidden), "position_embeddings": made, "position_ids": None}


def held(forward: ForwardPass, block: int, device: torch.device) -> Held:
    """The 2-D mask over what a block holds, and how many positions it lags behind if some were numbered anew.

    A static cache has room for columns that nobody wrote yet: the mask hides them.
    """
    prompt, given = forward.prompt, forward.given
    layers = prompt.view_layers(block)
    if layers not in forward.held:
        assert given is not None
        visible = prompt.mask(block, given.mask, given.total, device)
        if visible is not None and (room := caches.room(forward.cache)):
            visible = functional.pad(visible, (0, room - visible.shape[1]))
        anew = prompt.renumbered(block)
        freed = prompt.freed_in_all(block, device, forward.answering) if anew else None
        forward.held[layers] = Held(visible, freed)
    return forward.held[layers]


def held_in_static_cache(cache: Any, mask: Tensor | None) -> dict[Any, Held]:
    """The same for a decode step that torch.compile traces: from tensors that the cache keeps, in fixed sizes."""
    found = {}
    for layers, (columns, freed) in caches.fixed(cache).items():
        visible = columns >= 0
        if mask is not None:
            room = functional.pad(mask.bool(), (0, columns.shape[1] - mask.shape[1]))
            visible = visible & room.gather(1, columns.clamp_min(0))
        found[layers] = Held(visible, freed)
    return found


def mask(forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"]) -> Mask:
    """The causal mask of this pass for a block, in whatever form the attention backend wants.

    One new column sees all that is held, so for sdpa the mask of a decode step is the 2-D one, as numbers that are
    added to the logits: sdpa would make those of truth values again in every block.
    """
    visible, given = held(forward, block, hidden.device).mask, forward.given
    step = given is not None and given.width == 1 and not forward.prefill
    if step and visible is not None and forward.pipeline.attention == "sdpa":
        added = torch.zeros(visible.shape, dtype=hidden.dtype, device=visible.device)
        return added.masked_fill_(~visible, -torch.inf)[:, None, None]
    cache = None if forward.cache is None else caches.PhysicalLength(forward.cache, block)
    return create_causal_mask(
        config=forward.pipeline.anatomy.text,
        inputs_embeds=hidden,
        attention_mask=visible,
        past_key_values=cache,
        and_mask_function=_hiding_what_answers(forward, block, hidden, 0 if cache is None else cache.length),
        layer_idx=block,
    )


def rotary(forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]) -> RotaryTables:
    """Rotary tables of the columns a block sees: those of their old positions, or of new ones.

    In the pass that prunes, positions are those of the whole prompt. A kept column then lags behind by what was freed
    up to it in this prompt, and by all of what earlier turns freed; `freed_in_all` counts this prompt as a whole, as
    later passes want it, so what was freed behind the column is added again.
    """
    cos, sin = (table.to(hidden.device) for table in kwargs["position_embeddings"])  # blocks may lie apart
    prompt, lag = forward.prompt, held(forward, block, hidden.device).freed
    pruned = forward.prefill and prompt.view_layer(block) is not None
    view = prompt.view_at(block).to(hidden.device) if pruned else None
    if lag is not None and kwargs["position_ids"] is not None:
        positions = kwargs["position_ids"].to(hidden.device) - lag.to(hidden.device)
        if view is not None:
            freed = prompt.freed(block, hidden.device, forward.answering)
            positions = (positions + freed[:, -1:] - freed).gather(1, view.index)
        anew = forward.pipeline.anatomy.rotary(hidden, positions.clamp_min(0))
        if anew is not None:
            return anew
    if view is None:
        return cos, sin
    return ops.gather_columns(cos, view.index), ops.gather_columns(sin, view.index)


def _answers_at(forward: ForwardPass, block: int, device: torch.device) -> Bool[Tensor, "b"]:
    """For which prompts this block has a dropped column that the answer is read from."""
    none = forward.pipeline.anatomy.depth
    rows = [forward.answering.get(row, none) <= block for row in range(len(forward.prompt.counts))]
    return torch.tensor(rows, device=device)


def _hiding_what_answers(forward: ForwardPass, block: int, hidden: Tensor, past: int) -> Callable[..., Any] | None:
    """What hides `answering` columns from the drafts that follow them; None where there are no such columns."""
    drafts = forward.prompt.drafts
    if not forward.answering or not drafts:
        return None
    if "flash" in forward.pipeline.attention:
        raise PromptError(
            "a prompt ends with its picture and brings drafts along, from which flash attention cannot hide the "
            "picture's last token: use sdpa, decode without drafts, or let words follow the picture"
        )
    rows, column = _answers_at(forward, block, hidden.device), past + hidden.shape[1] - 1 - drafts
    return lambda b, h, q, kv: (kv != column) | (q <= column) | ~rows[b]
