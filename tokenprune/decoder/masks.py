"""The mask over the columns that a block holds.

Where the model has made a 4-D mask, that one says who sees whom: windows, pictures that see both ways and prefixes need
no knowledge here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import create_causal_mask

from ..errors import PromptError
from ..model.anatomy import FULL
from ..state import cache as caches
from .run import ForwardPass, Held, Mask


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


def mask(forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"], own: Mask) -> Mask:
    """The mask of this pass for a block, in whatever form the attention backend wants. `own` is the model's.

    One new column sees all that a block without a window holds, so for sdpa the mask of a decode step is the 2-D one,
    as numbers that are added to the logits: sdpa would make those of truth values again in every block.

    Raises:
        PromptError: the model's mask cannot be followed.
    """
    anatomy, given = forward.pipeline.anatomy, forward.given
    kind, step = anatomy.kinds[block], given is not None and given.width == 1 and not forward.prefill
    if given is not None and isinstance(own, Tensor) and own.ndim == 4 and not (step and kind == FULL):
        return followed(forward, block, hidden, own)
    refuse_windows(forward, block)
    visible = held(forward, block, hidden.device).mask
    if step and visible is not None and forward.pipeline.attention == "sdpa":
        added = torch.zeros(visible.shape, dtype=hidden.dtype, device=visible.device)
        return added.masked_fill_(~visible, -torch.inf)[:, None, None]
    if own is None and forward.pipeline.attention == "sdpa" and anatomy.sees_both_ways(block):
        return None if visible is None else visible[:, None, None].expand(-1, -1, hidden.shape[1], -1)
    holder = anatomy.holders[block]
    cache = None if forward.cache is None else caches.PhysicalLength(forward.cache, holder)
    return create_causal_mask(
        config=anatomy.text,
        inputs_embeds=hidden,
        attention_mask=visible,
        past_key_values=cache,
        and_mask_function=_hiding_what_answers(forward, block, hidden, 0 if cache is None else cache.length),
        layer_idx=holder,
    )


def followed(forward: ForwardPass, block: int, hidden: Tensor, own: Float[Tensor, "b h q c"]) -> Tensor:
    """The model's own mask: its rows of the columns that enter the block, its columns of those that the block holds."""
    prompt = forward.prompt
    columns = columns_held(forward, block, own.device)
    at = columns - own_offset(forward, own)
    own = own.expand(len(columns), *own.shape[1:])
    if forward.prefill and own.shape[2] == prompt.full_view.span:
        rows = prompt.view_at(block).index.to(own.device)
        own = own.gather(2, rows[:, None, :, None].expand(*own.shape[:2], -1, own.shape[3]))
    made = own.gather(3, at.clamp_min(0)[:, None, None].expand(*own.shape[:3], -1))
    seen = ((columns >= 0) & (at >= 0))[:, None, None]
    hiding = _hiding_what_answers(forward, block, hidden, columns.shape[1] - made.shape[2])
    if hiding is not None:
        b, q, kv = (torch.arange(n, device=own.device) for n in (len(made), made.shape[2], made.shape[3]))
        seen = seen & hiding(b[:, None, None, None], 0, q[:, None] + len(kv) - len(q), kv)
    return made.masked_fill(~seen, False if made.dtype == torch.bool else torch.finfo(made.dtype).min)


def columns_held(forward: ForwardPass, block: int, device: torch.device) -> Int[Tensor, "b held"]:
    """The column of the conversation that each one is that a block holds while it runs; -1 for pads.

    A cache with a window keeps the last ones of earlier passes that a new one may see. Those are the last that are
    left, so they reach back at least as far as the window does.
    """
    prompt, given = forward.prompt, forward.given
    assert given is not None
    columns = prompt.columns_held(block, given.total, device)
    room, window = caches.room(forward.cache), None
    if room is not None:
        return functional.pad(columns, (0, room - columns.shape[1]), value=-1)
    if forward.cache is not None:
        window = caches.window(forward.cache, forward.pipeline.anatomy.holders[block])
    new = prompt.view_at(block).width if forward.prefill else given.width
    past = columns.shape[1] - new
    return columns if window is None else columns[:, max(past - window + 1, 0) :]


def own_offset(forward: ForwardPass, own: Tensor) -> int:
    """The column of the conversation where the model's own mask begins: that of a window ends where all others do."""
    assert forward.given is not None
    return max(forward.given.total - own.shape[-1], 0)


def refuse_windows(forward: ForwardPass, block: int) -> None:
    """Raise PromptError where a backend would slide its window over the columns that are left.

    Under sdpa and eager attention masks say what a window hides, and none that it is not reached. Other backends slide
    it by themselves, whether they get a mask or not.
    """
    config, given = forward.pipeline.anatomy.text, forward.given
    if forward.pipeline.anatomy.kinds[block] == FULL or forward.pipeline.attention in ("sdpa", "eager"):
        return
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
    if given is not None and given.total > window:
        raise PromptError(
            f"{given.total} columns exceed a window of {window}, which {forward.pipeline.attention} would slide over "
            "dropped tokens: load the model with sdpa or eager attention"
        )


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
