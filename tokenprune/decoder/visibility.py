"""What a block sees: the mask over the columns it holds, and rows of what the model made for those that enter it.

Blocks hold different columns of one conversation, so each gets a mask of its own width. Where the model has made a 4-D
mask, that one says who sees whom: windows, pictures that see both ways and prefixes need no knowledge here. Columns
keep the positions that they had, so a table row goes with its column; only where a stage says `positions: compact` does
the decoder make tables anew, for positions that lag behind by how many were freed before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import create_causal_mask

from .. import ops
from ..errors import PromptError
from ..model.anatomy import ALONE, FULL, STATES
from ..parts.attention import RotaryTables, of_tables
from ..state import cache as caches
from ..state.view import View
from .run import ForwardPass, Held, Mask

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Of a block, by position and by name."""


def arguments(
    forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Arguments | None:
    """A block's arguments behind its hidden states, with what it sees and nothing else; None where that is all.

    Masks and tables are the same for blocks of one layer type up to the next stage. All else that the model made for
    every column of the prompt, some for one block alone, is narrowed where the block has fewer.
    """
    prompt, kind = forward.prompt, forward.pipeline.anatomy.kinds[block]
    if block >= forward.until:
        forward.until = prompt.next_stage(block, forward.pipeline.anatomy.depth)
        forward.changed = {}
    if kind not in forward.changed:
        forward.changed[kind] = _changed(forward, block, hidden, kwargs)
    changed = forward.changed[kind]
    if changed is None:
        return None
    if forward.prefill and prompt.view_layer(block) is not None:
        view = prompt.view_at(block).to(hidden.device)
        args = tuple(narrowed(value, view) for value in args)
        kwargs = {name: value if name in changed else narrowed(value, view) for name, value in kwargs.items()}
        if hidden.shape[1] < view.width:
            changed = _of_last_rows(changed, hidden.shape[1])
    return args, {**kwargs, **changed}


def narrowed(value: Any, view: View) -> Any:
    """An argument with the view's columns, if it has one row for each column of the prompt."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != view.span:
        return value
    index = view.index.to(value.device).view(*view.index.shape, *[1] * (value.ndim - 2))
    index = index.expand(-1, -1, *value.shape[2:])
    return value.expand(len(index), *value.shape[1:]).gather(1, index)


def _changed(
    forward: ForwardPass, block: int, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    layers, kind = forward.prompt.view_layers(block), forward.pipeline.anatomy.kinds[block]
    if not any(layer is not None for layer in layers):
        return None
    if kind in STATES:
        return _of_states(forward, block)
    if kind in ALONE:
        return {}
    changed = {"attention_mask": mask(forward, block, hidden, kwargs.get("attention_mask"))}
    positions, tables = rotary(forward, block, kind, hidden, kwargs)
    if tables is not None:
        changed["position_embeddings"] = tables
    if "flash" in forward.pipeline.attention:  # it would read gaps between positions as packed sequences
        _refuse_positions(forward, block)
        changed["position_ids"] = None
    elif positions is not None:
        changed["position_ids"] = positions
    return changed


def _of_states(forward: ForwardPass, block: int) -> dict[str, Any] | None:
    """Of a block that keeps a state instead of columns: nothing can be hidden from it, so rows are all there is.

    Rows that keep fewer are padded on the left, which such a block passes over where nothing came before.

    Raises:
        PromptError: something came before.
    """
    view = forward.prompt.view_at(block)
    if not forward.prefill or forward.prompt.view_layer(block) is None:
        return None
    if view.padded and forward.prompt.start:
        raise PromptError(
            "the prompts of a later turn keep different numbers of tokens, and the padding between the turns would "
            "change the states of this decoder's linear blocks: continue with one prompt at a time, or with batches "
            "that keep equally many tokens"
        )
    return {"attention_mask": view.valid if view.padded else None}


def _of_last_rows(changed: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The same for a block that the model hands its last rows only: one that reads keys of earlier blocks."""
    found, made = dict(changed), changed["attention_mask"]
    if isinstance(made, Tensor) and made.ndim == 4:
        found["attention_mask"] = made[:, :, -rows:]
    elif made is None and rows > 1:
        raise PromptError(
            "several logits are asked for behind a pruned prompt whose last blocks see nothing else: pass "
            "logits_to_keep=1, or load the model with eager attention"
        )
    if "position_embeddings" in changed:
        found["position_embeddings"] = of_tables(lambda table: table[..., -rows:, :], changed["position_embeddings"])
    return found


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
    if own is not None and kind != FULL:
        _refuse_windows(forward, block)
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


def _refuse_windows(forward: ForwardPass, block: int) -> None:
    """Raise PromptError where a backend would slide its window over the columns that are left."""
    config, given = forward.pipeline.anatomy.text, forward.given
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
    if given is not None and given.total > window:
        raise PromptError(
            f"{given.total} columns exceed a window of {window}, which {forward.pipeline.attention} would slide over "
            "dropped tokens: load the model with sdpa or eager attention"
        )


def _refuse_positions(forward: ForwardPass, block: int) -> None:
    attention = forward.pipeline.anatomy.attention(block)
    if attention is not None and attention.temper is not None:
        raise PromptError(
            "this decoder scales its queries by their positions, which flash attention would read as packed sequences "
            "where tokens were dropped: load the model with sdpa or eager attention"
        )


def rotary(
    forward: ForwardPass, block: int, kind: str, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> tuple[Int[Tensor, "b k"] | None, RotaryTables]:
    """Rotary tables of the columns a block sees: those of their old positions, or of new ones, which are given too.

    In the pass that prunes, positions are those of the whole prompt. A kept column then lags behind by what was freed
    up to it in this prompt, and by all of what earlier turns freed; `freed_in_all` counts this prompt as a whole, as
    later passes want it, so what was freed behind the column is added again.

    Args:
        kind: the layer type of the block that the tables are for.
        kwargs: what the model gave that block.
    """
    prompt, tables = forward.prompt, kwargs.get("position_embeddings")
    key = prompt.view_layers(block), kind
    if key in forward.rotary or not any(layer is not None for layer in key[0]):
        return forward.rotary.get(key, (None, tables))
    lag = held(forward, block, hidden.device).freed
    pruned = forward.prefill and prompt.view_layer(block) is not None
    view = prompt.view_at(block).to(hidden.device) if pruned else None
    positions, anew = None, None
    if lag is not None and kwargs.get("position_ids") is not None:
        positions = kwargs["position_ids"].to(hidden.device) - lag.to(hidden.device)
        if view is not None:
            freed = prompt.freed(block, hidden.device, forward.answering)
            positions = (positions + freed[:, -1:] - freed).gather(1, view.index)
        anew = forward.pipeline.anatomy.rotary(hidden, positions.clamp_min(0), kind)
    if anew is None:
        positions, anew = None, of_tables(lambda table: table.to(hidden.device), tables)  # blocks may lie apart
        if view is not None:
            anew = of_tables(lambda table: ops.gather_columns(table, view.index), anew)
    forward.rotary[key] = positions, anew
    return positions, anew


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
