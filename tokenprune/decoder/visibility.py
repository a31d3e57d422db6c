"""What a block sees: its arguments, with the columns that are left and nothing else.

Blocks hold different columns of one conversation, so each gets a mask of its own width (`masks`), and rows of whatever
else the model made for every column of the prompt (`positions`, and here).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError
from ..model.anatomy import ALONE, STATES
from ..parts.attention import of_tables
from . import masks, positions
from .run import ForwardPass

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
    if not forward.prefill or (layer := prompt.view_layer(block)) is None:
        return args, {**kwargs, **changed}
    view = prompt.views[layer]
    rest = {name: value for name, value in kwargs.items() if isinstance(value, Tensor) and name not in changed}
    if hidden.shape[1] < view.width:
        changed = _of_last_rows(changed, hidden.shape[1])
    rest = {name: positions.narrowed(value, view) for name, value in rest.items()}
    return tuple(positions.narrowed(value, view) for value in args), {**kwargs, **rest, **changed}


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
    changed = {"attention_mask": masks.mask(forward, block, hidden, kwargs.get("attention_mask"))}
    numbered, tables = positions.rotary(forward, block, kind, hidden, kwargs)
    if tables is not None:
        changed["position_embeddings"] = tables
    if "flash" in forward.pipeline.attention:  # it would read gaps between positions as packed sequences
        _refuse_positions(forward, block)
        changed["position_ids"] = None
    elif numbered is not None:
        changed["position_ids"] = numbered
    elif forward.prefill and "position_ids" in kwargs:
        view = forward.prompt.view_at(block)
        changed["position_ids"] = positions.narrowed(kwargs["position_ids"], view)
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


def _refuse_positions(forward: ForwardPass, block: int) -> None:
    attention = forward.pipeline.anatomy.attention(block)
    if attention is not None and attention.temper is not None:
        raise PromptError(
            "this decoder scales its queries by their positions, which flash attention would read as packed sequences "
            "where tokens were dropped: load the model with sdpa or eager attention"
        )
