"""One stage of a batch: what every prompt keeps, and the states of that; and the way back at the end of the decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import ops
from ..errors import PromptError
from ..model.anatomy import STATES
from ..state.prompt import Prompt
from ..state.view import View
from . import source
from .run import ForwardPass
from .select import Selected, select


def prune(
    forward: ForwardPass, layer: int, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> Float[Tensor, "b j d"]:
    """Score, select and gather at one stage; puts the prompt with its new view in the pass.

    Args:
        kwargs: what the model hands to the block behind the stage, for the whole prompt.

    Raises:
        PromptError: the answer would be read from a column that no block can hide later.
    """
    prompt, stage = forward.prompt, forward.prompt.stages[layer]
    view = prompt.view_at(layer).to(hidden.device)
    blocks = source.arguments_of(forward, layer, hidden, kwargs)
    visual = _visual(forward, view)
    at_end = visual.int().argsort(dim=1, stable=True)  # visual columns stand last, in order
    at = [at_end[row, view.width - n :] for row, n in enumerate(stage.before)]
    selected = {
        row: select(forward, stage, row, source.seen(forward, layer, row, view, at[row], hidden, blocks))
        for row, (n, kept) in enumerate(zip(stage.before, stage.kept, strict=True))
        if kept < n
    }
    answering = [row for row, one in selected.items() if _drops_what_answers(forward, row, at[row], one)]
    _refuse_lost_answers(forward, answering)
    forward.answering = {**forward.answering, **dict.fromkeys(answering, layer)}
    keep = _keep(view.valid & ~visual, at, selected, answering)
    gone = [n - kept - (row in answering) for row, (n, kept) in enumerate(zip(stage.before, stage.kept, strict=True))]
    narrowed, local = view.narrow(keep, [length - few for length, few in zip(view.lengths, gone, strict=True)])
    forward.prompt = prompt.after(layer, narrowed, _scores(prompt, view, at, selected))
    forward.until = 0
    forward.captured.pop(layer, None)
    forward.entering.pop(layer, None)
    if layer == max(prompt.stages):
        forward.embedded = None
    return gathered(_folded(hidden, at, selected, answering), narrowed, local)


def _visual(forward: ForwardPass, view: View) -> Bool[Tensor, "b k"]:
    """Which columns of a view hold visual tokens that may be dropped: not those that only wait for their answer."""
    visual = forward.prompt.visual.to(view.index.device).gather(1, view.index) & view.valid
    for row in forward.answering:
        visual[row, view.width - 1 - forward.prompt.drafts] = False
    return visual


def _drops_what_answers(forward: ForwardPass, row: int, at: Int[Tensor, "n"], selected: Selected) -> bool:
    """Whether a prompt that ends with its picture loses the token that its answer is read from.

    That token then goes on to the end of this pass all the same, unmerged, and is seen by nobody later. Asking is a
    sync, but few prompts end so.
    """
    if not forward.prompt.ends_with_picture[row] or row in forward.answering:
        return False
    return not bool((selected.chosen == len(at) - 1).any())


def _refuse_lost_answers(forward: ForwardPass, answering: Collection[int]) -> None:
    if answering and not STATES.isdisjoint(forward.pipeline.anatomy.kinds):
        raise PromptError(
            "a prompt ends with its picture, and the last of its tokens, from which the answer is read, was dropped: "
            "it would stay in the states of this decoder's linear blocks. Let words follow the picture"
        )


def _keep(
    keep: Bool[Tensor, "b k"], at: Sequence[Tensor], selected: Mapping[int, Selected], answering: Collection[int]
) -> Bool[Tensor, "b k"]:
    """`keep` and the visual columns that stay, `at` being all of them, by row."""
    for row, columns in enumerate(at):
        stay = columns[selected[row].chosen] if row in selected else columns
        keep[row].index_fill_(0, stay, True)
        if row in answering:
            keep[row].index_fill_(0, columns[-1:], True)
    return keep


def _scores(prompt: Prompt, view: View, at: Sequence[Tensor], selected: Mapping[int, Selected]) -> Float[Tensor, "b s"]:
    """Of this stage, by column of the prompt: NaN where nothing was scored."""
    scores = torch.full(prompt.ids.shape, torch.nan, dtype=torch.float32, device=view.index.device)
    for row, one in selected.items():
        scores[row].index_copy_(0, view.index[row, at[row]], one.scores.float())
    return scores


def _folded(
    hidden: Float[Tensor, "b k d"], at: Sequence[Tensor], selected: Mapping[int, Selected], answering: Collection[int]
) -> Float[Tensor, "b k d"]:
    """The states with what mergers made of the visual tokens."""
    merged = {row: one.folded for row, one in selected.items() if one.folded is not None}
    hidden = hidden.clone() if merged else hidden
    for row, states in merged.items():
        n = len(states) - (row in answering)
        hidden[row].index_copy_(0, at[row][:n], states[:n])
    return hidden


def gathered(hidden: Float[Tensor, "b k d"], view: View, local: Int[Tensor, "b j"]) -> Float[Tensor, "b j d"]:
    """The columns of a narrower view; zeros where it pads."""
    hidden = ops.gather_columns(hidden, local)
    return hidden.masked_fill(~view.valid[..., None], 0) if view.padded else hidden


def restored(output: Any, prompt: Prompt, depth: int) -> Any:
    """The decoder's output as if nothing was dropped: kept rows at their prompt columns, zeros between them."""
    if isinstance(output, tuple):
        return (spread(prompt, depth, output[0]), *output[1:])
    output.last_hidden_state = spread(prompt, depth, output.last_hidden_state)
    if getattr(output, "hidden_states", None):  # what entered the first block, then what left each one
        output.hidden_states = tuple(spread(prompt, ran, hidden) for ran, hidden in enumerate(output.hidden_states))
    return output


def spread(prompt: Prompt, ran: int, hidden: Tensor | None) -> Tensor | None:
    """Hidden states after `ran` blocks, each row at its prompt column."""
    view = prompt.view_at(max(ran - 1, 0))
    if hidden is None or view is prompt.full_view or hidden.shape[1] != view.width:
        return hidden  # some decoders hand their last rows only to their last blocks
    view = view.to(hidden.device)
    hidden = hidden.masked_fill(~view.valid[..., None], 0) if view.padded else hidden
    full = hidden.new_zeros(hidden.shape[0], view.span, hidden.shape[-1])
    return full.scatter(1, view.index[..., None].expand_as(hidden), hidden)
