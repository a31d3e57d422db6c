"""Where a scorer's `Seen` reads from during a prefill: what the model computed, and what it would compute next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PromptError, ScorerError
from ..parts import guard
from ..parts.attention import Attention, RotaryTables, of_tables
from ..seen.prompt import Block, Name, Seen
from ..seen.vision import Vision
from ..state import cache as caches
from ..state.prompt import Prompt
from ..state.view import View
from . import inputs, masks, positions
from .run import ForwardPass


class Given(NamedTuple):
    """What a block was given, or is about to be.

    Attributes:
        number: of the block.
        tables: rotary tables of the view before the stage.
        positions: of its columns, where the model gives them to its blocks.
        mask: the model's own, of the whole prompt.
    """

    number: int
    tables: RotaryTables
    positions: Int[Tensor, "b k"] | None
    mask: Any


def arguments_of(
    forward: ForwardPass, layer: int, hidden: Float[Tensor, "b k d"], kwargs: Mapping[str, Any]
) -> dict[Block, Given]:
    """Of the blocks before and behind the stage at a layer; `kwargs` are what the model hands to the one behind."""
    kinds, before = forward.pipeline.anatomy.kinds, forward.entering.get(layer, kwargs)
    view = forward.prompt.view_at(layer - 1).to(hidden.device)

    def given(number: int, kwargs: Mapping[str, Any]) -> Given:
        numbered, tables = positions.rotary(forward, layer - 1, kinds[number], hidden, kwargs)
        if numbered is None and kwargs.get("position_ids") is not None:
            numbered = positions.narrowed(kwargs["position_ids"].to(hidden.device), view)
        return Given(number, tables, numbered, kwargs.get("attention_mask"))

    return {"previous": given(max(layer - 1, 0), before), "next": given(layer, kwargs)}


def seen(
    forward: ForwardPass,
    layer: int,
    row: int,
    view: View,
    at: Int[Tensor, "n"],
    hidden: Float[Tensor, "b k d"],
    blocks: Mapping[Block, Given],
) -> Seen:
    """One prompt of a batch, pads and drafts left out.

    Args:
        row: of the batch.
        view: what is there before the stage at `layer`.
        at: columns of the view that hold the prompt's visual tokens.
        hidden: states entering block `layer`.
        blocks: what those before and behind the stage were given.
    """
    prompt = forward.prompt
    real = view.columns(row, prompt.drafts)
    every = prompt.full_view.columns(row, prompt.drafts)
    states = guard.own(hidden[row][real])
    rank = view.valid[row].cumsum(0) - 1  # column of the view -> place among the real ones
    place = prompt.full_view.valid[row].cumsum(0) - 1  # column of the prompt -> place among its real ones
    ids = prompt.ids[row][every]
    captured = forward.captured.get(layer, {})
    return Seen(
        layer=layer,
        keep=prompt.stages[layer].kept[row],
        ids=guard.own(ids.to(hidden.device)),
        columns=place.to(hidden.device)[view.index[row, at]],
        visual=rank[at],
        question=prompt.question[row] - prompt.drafts,
        states=states,
        source=ModelSource(forward, prompt, layer, row, view, real, every, states, rank[at], blocks, captured),
    )


@dataclass(frozen=True, eq=False)
class ModelSource:
    """One prompt of a prefill. Nothing is copied or computed before it is asked for.

    Attributes:
        forward: the pass.
        prompt: as it was before the stage.
        layer: blocks that already ran.
        row: of the batch.
        view: before the stage.
        real: the prompt's columns in it.
        every: the prompt's columns, in the whole prompt.
        states: p columns entering block `layer`.
        visual: which of them are visual tokens.
        blocks: what those before and behind the stage were given.
        captured: outputs of the projections of block `layer - 1`.
    """

    forward: ForwardPass
    prompt: Prompt
    layer: int
    row: int
    view: View
    real: slice | Int[Tensor, "p"]
    every: slice | Int[Tensor, "s"]
    states: Float[Tensor, "p d"]
    visual: Int[Tensor, "n"]
    blocks: Mapping[Block, Given]
    captured: Mapping[str, Float[Tensor, "b k *w"]]

    def _attention(self, block: Block) -> Attention:
        anatomy, number = self.forward.pipeline.anatomy, self.blocks[block].number
        if (found := anatomy.attention(number)) is not None:
            return found
        behind = int(block == "previous")
        layers = [str(b + behind) for b in range(anatomy.depth - behind) if anatomy.attention(b) is not None]
        others = f"prune at one of the layers {', '.join(layers)}, or " if layers else ""
        raise ScorerError(
            f"at layer {self.layer} block {number} ({anatomy.kinds[number]}) has no queries, keys or values to read: "
            f"{others}use a scorer of hidden states such as diversity"
        )

    def project(self, block: Block, name: Name, rows: Tensor | None) -> Tensor | None:
        """The last block's as the model computed them; the next one's are computed now, for the rows asked."""
        if block == "previous" and not self.layer:
            return None
        attention, ranks = self._attention(block), self.forward.pipeline.ranks
        if block == "next":
            given = attention.project(name, self.states if rows is None else self.states[rows])
        else:
            mine = self.captured[name][self.row][self.real]
            given = guard.own(mine) if rows is None else mine[rows]
        found, at = ranks.all_heads(name, attention.heads(name, given)), self.blocks[block].positions
        if name != "queries" or attention.temper is None or at is None:
            return found
        mine = at[min(self.row, len(at) - 1)][self.real]
        return found * attention.temper(mine if rows is None else mine[rows]).to(found.dtype)[:, None]

    def rotate(self, block: Block, states: Tensor, rows: Tensor | None) -> Tensor:
        def mine(table: Tensor) -> Tensor:
            found = table[min(self.row, len(table) - 1)].to(states.device)[self.real]
            return found if rows is None else found[rows]

        return self._attention(block).rotate(states, of_tables(mine, self.blocks[block].tables))

    def scaling(self, block: Block) -> float:
        return self._attention(block).scaling

    def cap(self, block: Block) -> float | None:
        return self._attention(block).cap

    def past(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """From the cache, where the last block has put the keys of this pass already."""
        forward, number, device = self.forward, self.blocks[block].number, self.states.device
        if not self.prompt.start:
            return None
        keys = caches.keys(forward.cache, number, self.row, device)
        if block == "previous":
            keys = keys[:, : -self.prompt.view_at(number).width]
        counts = torch.ones(keys.shape[1], dtype=torch.bool, device=device)
        assert forward.given is not None
        mask = self.prompt.mask(number, forward.given.mask, forward.given.total, device)
        counts = counts if mask is None else mask[self.row, : keys.shape[1]]
        return forward.pipeline.ranks.all_heads("keys", keys), counts

    def allowed(self, block: Block, rows: Int[Tensor, "r"]) -> Bool[Tensor, "r c+p"] | None:
        """As the model's own mask has it, if it made one."""
        own = self.blocks[block].mask
        if not isinstance(own, Tensor) or own.ndim != 4:
            masks.refuse_windows(self.forward, self.blocks[block].number)
            return None
        prompt, given = self.prompt, self.forward.given
        assert given is not None
        columns = self.view.index[self.row][self.real]
        mine = inputs.as_bool(own[min(self.row, len(own) - 1), 0].index_select(0, columns[rows].to(own.device)))
        held = prompt.start + columns.to(own.device)
        if prompt.earlier is not None:
            before = prompt.earlier.columns_held(self.blocks[block].number, prompt.start, own.device)
            held = torch.cat([before[self.row], held])
        at = held - masks.own_offset(self.forward, own)
        return (mine[:, at.clamp_min(0)] & (at >= 0) & (held >= 0)).to(self.states.device)

    def norm(self, states: Tensor) -> Tensor:
        return self.forward.pipeline.anatomy.norm(states)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Captured before block 0, and kept until the last stage is over."""
        entered, prompt, every = self.forward.embedded, self.prompt, self.every
        assert entered is not None
        mine = entered[self.row]
        mine = mine[every if isinstance(every, slice) else every.to(mine.device)]
        visual = prompt.visual_after_vision[self.row][every]
        shown = visual.int().argsort(stable=True)[len(visual) - prompt.count_after_vision[self.row] :]
        return guard.own(mine.to(self.states.device)), shown.to(self.states.device)

    def vision(self) -> Vision | None:
        return self._vision

    @cached_property
    def _vision(self) -> Vision | None:
        recorder = self.forward.pipeline.recorder
        return None if recorder is None or self.layer else recorder.find(self.states[self.visual])

    def text(self) -> str | None:
        processor: Any = self.forward.pipeline.processor
        if processor is None:
            return None
        prompt = self.prompt
        ids, question = prompt.ids[self.row][self.every], prompt.question[self.row] - prompt.drafts
        asked = ids[len(ids) - question :].tolist()
        if any(token < 0 for token in asked):
            raise PromptError("the scorer reads the question as text: pass input_ids, not embeddings alone")
        reader = getattr(processor, "tokenizer", processor)
        return str(reader.decode(asked, skip_special_tokens=True))
