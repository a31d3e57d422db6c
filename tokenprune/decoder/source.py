"""Where a scorer's `Seen` reads from during a prefill: what the model computed, and what it would compute next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import PromptError
from ..parts import guard
from ..parts.attention import Attention, RotaryTables
from ..seen.prompt import Block, Name, Seen
from ..seen.vision import Vision
from ..state import cache as caches
from ..state.prompt import Prompt
from ..state.view import View
from .run import ForwardPass


def seen(
    forward: ForwardPass,
    layer: int,
    row: int,
    view: View,
    at: Int[Tensor, "n"],
    hidden: Float[Tensor, "b k d"],
    tables: RotaryTables,
) -> Seen:
    """One prompt of a batch, pads and drafts left out.

    Args:
        row: of the batch.
        view: what is there before the stage at `layer`.
        at: columns of the view that hold the prompt's visual tokens.
        hidden: states entering block `layer`.
        tables: rotary tables of the view's columns.
    """
    prompt = forward.prompt
    real = view.columns(row, prompt.drafts)
    every = prompt.full_view.columns(row, prompt.drafts)
    states = guard.own(hidden[row][real])
    rank = view.valid[row].cumsum(0) - 1  # column of the view -> place among the real ones
    place = prompt.full_view.valid[row].cumsum(0) - 1  # column of the prompt -> place among its real ones
    ids = prompt.ids[row][every]
    cos, sin = (table[min(row, len(table) - 1)].to(hidden.device)[real] for table in tables)
    return Seen(
        layer=layer,
        keep=prompt.stages[layer].kept[row],
        ids=guard.own(ids.to(hidden.device)),
        columns=place.to(hidden.device)[view.index[row, at]],
        visual=rank[at],
        question=prompt.question[row] - prompt.drafts,
        states=states,
        source=ModelSource(
            forward, prompt, layer, row, real, every, states, rank[at], (cos, sin), forward.captured.get(layer, {})
        ),
    )


@dataclass(frozen=True, eq=False)
class ModelSource:
    """One prompt of a prefill. Nothing is copied or computed before it is asked for.

    Attributes:
        forward: the pass.
        prompt: as it was before the stage.
        layer: blocks that already ran.
        row: of the batch.
        real: the prompt's columns, in the view before the stage.
        every: the prompt's columns, in the whole prompt.
        states: p columns entering block `layer`.
        visual: which of them are visual tokens.
        tables: cos and sin of the p columns.
        captured: outputs of the projections of block `layer - 1`.
    """

    forward: ForwardPass
    prompt: Prompt
    layer: int
    row: int
    real: slice | Int[Tensor, "p"]
    every: slice | Int[Tensor, "s"]
    states: Float[Tensor, "p d"]
    visual: Int[Tensor, "n"]
    tables: tuple[Float[Tensor, "p dh"], Float[Tensor, "p dh"]]
    captured: Mapping[str, Float[Tensor, "b k *w"]]

    def _number(self, block: Block) -> int:
        return self.layer if block == "next" else max(self.layer - 1, 0)

    def _attention(self, block: Block) -> Attention:
        return self.forward.pipeline.anatomy.attention(self._number(block))

    def project(self, block: Block, name: Name, rows: Tensor | None) -> Tensor | None:
        """The last block's as the model computed them; the next one's are computed now, for the rows asked."""
        attention, ranks = self._attention(block), self.forward.pipeline.ranks
        if block == "next":
            given = attention.project(name, self.states if rows is None else self.states[rows])
        elif self.layer:
            mine = self.captured[name][self.row][self.real]
            given = guard.own(mine) if rows is None else mine[rows]
        else:
            return None
        return ranks.all_heads(name, attention.heads(given))

    def rotate(self, block: Block, states: Tensor, rows: Tensor | None) -> Tensor:
        cos, sin = self.tables if rows is None else (table[rows] for table in self.tables)
        return self._attention(block).rotate(states, cos, sin)

    def scaling(self, block: Block) -> float:
        return self._attention(block).scaling

    def past(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """From the cache, where the last block has put the keys of this pass already."""
        forward, number, device = self.forward, self._number(block), self.states.device
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
