"""What a scorer may look at: one prompt at the depth where it is pruned, read lazily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import ops
from ..errors import PromptError, ScorerError
from .vision import Vision

Block = Literal["previous", "next"]
"""The block that just ran, or the one that runs next."""

Name = Literal["queries", "keys", "values"]


class Source(Protocol):
    """Where a prompt's states come from: a prefill, or plain tensors. None is what there is not."""

    def project(self, block: Block, name: Name, rows: Int[Tensor, "r"] | None) -> Float[Tensor, "heads r dh"] | None:
        """Queries, keys or values before RoPE, of some of the p columns (None: all). None if there is no such block."""

    def rotate(
        self, block: Block, states: Float[Tensor, "heads r dh"], rows: Int[Tensor, "r"] | None
    ) -> Float[Tensor, "heads r dh"]:
        """RoPE at the positions of these columns (None: all)."""

    def scaling(self, block: Block) -> float:
        """Factor on the attention logits."""

    def cap(self, block: Block) -> float | None:
        """What keeps the attention logits small: l becomes `cap * tanh(l / cap)`; None leaves them."""

    def past(self, block: Block) -> tuple[Float[Tensor, "h c dh"], Bool[Tensor, "c"]] | None:
        """Keys of earlier turns with RoPE, and which of these count; None in a first turn."""

    def allowed(self, block: Block, rows: Int[Tensor, "r"]) -> Bool[Tensor, "r c+p"] | None:
        """Which columns, of earlier turns and of the p, some of the p see in a block; None: all up to their own."""

    def norm(self, states: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        """The decoder's final norm."""

    def embeddings(self) -> tuple[Float[Tensor, "s d"], Int[Tensor, "m"]] | None:
        """What entered block 0, of the whole prompt, and which of these rows are of visual tokens."""

    def vision(self) -> Vision | None:
        """The vision tower's states of these tokens."""

    def text(self) -> str | None:
        """The text after the last visual token."""


@dataclass(frozen=True, eq=False)
class Plain:
    """A source of plain tensors, for trying a part without a model. It is the same whatever the block.

    Attributes:
        projected: by name, of all p columns.
        rotation: RoPE; by default none.
        scale: factor on the attention logits.
        normalise: the final norm; by default none.
        entered: `embeddings`.
        seen: the vision tower.
        words: the question.
    """

    projected: Mapping[str, Float[Tensor, "heads p dh"]] = field(default_factory=dict)
    rotation: Callable[[Tensor, Tensor | None], Tensor] = lambda states, rows: states
    scale: float = 1.0
    normalise: Callable[[Tensor], Tensor] = lambda states: states
    entered: tuple[Tensor, Tensor] | None = None
    seen: Vision | None = None
    words: str | None = None

    def project(self, block: Block, name: Name, rows: Tensor | None) -> Tensor | None:
        states = self.projected.get(name)
        return states if states is None or rows is None else states[:, rows]

    def rotate(self, block: Block, states: Tensor, rows: Tensor | None) -> Tensor:
        return self.rotation(states, rows)

    def scaling(self, block: Block) -> float:
        return self.scale

    def cap(self, block: Block) -> None:
        return None

    def past(self, block: Block) -> None:
        return None

    def allowed(self, block: Block, rows: Tensor) -> None:
        return None

    def norm(self, states: Tensor) -> Tensor:
        return self.normalise(states)

    def embeddings(self) -> tuple[Tensor, Tensor] | None:
        return self.entered

    def vision(self) -> Vision | None:
        return self.seen

    def text(self) -> str | None:
        return self.words


@dataclass(frozen=True, eq=False)
class Seen:
    """What a scorer may look at: ONE prompt at the depth where it is pruned, read lazily.

    `p` columns are still there, `n` of them visual. States come from the last block that saw them all.

    Attributes:
        layer: blocks that already ran.
        keep: how many of the n visual tokens will stay.
        ids: token ids of the whole prompt; -1 for text that came as embeddings.
        columns: column of each visual token in the whole prompt.
        visual: place of each visual token among the p columns.
        question: text tokens that follow the last visual token.
        states: p columns entering block `layer`.
        source: where all other states come from; use the properties and methods.
        scores: what the scorer gave, for a merger; None before.
    """

    layer: int
    keep: int
    ids: Int[Tensor, "s"]
    columns: Int[Tensor, "n"]
    visual: Int[Tensor, "n"]
    question: int
    states: Float[Tensor, "p d"]
    source: Source
    scores: Float[Tensor, "n"] | None = None

    @classmethod
    def of(
        cls,
        *,
        keep: int,
        hidden: Float[Tensor, "n d"] | None = None,
        queries: Float[Tensor, "H n dh"] | None = None,
        keys: Float[Tensor, "h n dh"] | None = None,
        values: Float[Tensor, "h n dh"] | None = None,
        vision: Vision | None = None,
    ) -> Seen:
        """A prompt of visual tokens only, from plain tensors: for trying a scorer without a model."""
        given = {name: t for name, t in (("queries", queries), ("keys", keys), ("values", values)) if t is not None}
        if hidden is None and vision is not None:
            hidden = torch.zeros(len(vision.places), 1)
        n = len(hidden) if hidden is not None else next(iter(given.values())).shape[1]
        every = torch.arange(n)
        states = hidden if hidden is not None else torch.zeros(n, 1)
        return cls(1, keep, every, every, every, 0, states, Plain(given, seen=vision))

    @property
    def hidden(self) -> Float[Tensor, "n d"]:
        """Hidden states of the visual tokens entering block `layer`; projector rows at layer 0."""
        return self.states[self.visual]

    @cached_property
    def normed(self) -> Float[Tensor, "p d"]:
        """`states` under the decoder's final norm."""
        return self.source.norm(self.states)

    @property
    def embeddings(self) -> Float[Tensor, "s d"]:
        """What entered block 0, of the whole prompt: tokens dropped since are included."""
        return self._entered[0]

    @property
    def shown(self) -> Int[Tensor, "m"]:
        """Which `embeddings` are of visual tokens."""
        return self._entered[1]

    @cached_property
    def _entered(self) -> tuple[Tensor, Tensor]:
        found = self.source.embeddings()
        if found is None:
            raise ScorerError("this prompt has no embeddings: give its source entered=(states, visual columns)")
        return found

    @property
    def words(self) -> Int[Tensor, "t"]:
        """Places among the p columns of the text after the last visual token; the last column if there is none."""
        p = len(self.states)
        return torch.arange(p - max(self.question, 1), p, device=self.states.device)

    @cached_property
    def queries(self) -> Float[Tensor, "H n dh"]:
        """Query states of the visual tokens in the last block that saw them all, before RoPE."""
        return self._project("previous", "queries", self.visual)

    @cached_property
    def keys(self) -> Float[Tensor, "h n dh"]:
        """Key states, likewise."""
        return self._project("previous", "keys", self.visual)

    @cached_property
    def values(self) -> Float[Tensor, "h n dh"]:
        """Value states, likewise."""
        return self._project("previous", "values", self.visual)

    @cached_property
    def rotated_keys(self) -> Float[Tensor, "h p dh"]:
        """Key states of every column that is left, text included, with RoPE."""
        return self.rotate(self._project("previous", "keys", None))

    @cached_property
    def vision(self) -> Vision:
        """The vision tower's states of these tokens, at layer 0. The scorer's `reads_blocks` says which blocks."""
        found = self.source.vision()
        if found is None:
            raise ScorerError(
                f"no states of the vision tower at layer {self.layer}: they are there at layer 0, for scorers and "
                "mergers whose `reads_blocks` names the blocks they read"
            )
        return found

    @cached_property
    def text(self) -> str:
        """The text after the last visual token. PromptError if the model was pruned without its processor."""
        found = self.source.text()
        if found is None:
            raise PromptError(
                "the scorer reads the question as text, which needs the model's processor: tokenprune.prune(model, "
                "recipe, processor=processor)"
            )
        return found

    def rotate(
        self, states: Float[Tensor, "heads r dh"], rows: Int[Tensor, "r"] | None = None, block: Block = "previous"
    ) -> Float[Tensor, "heads r dh"]:
        """RoPE for states of some of the p columns (None: all), with the positions that the model gives them."""
        return self.source.rotate(block, states, rows)

    def attention(
        self,
        queries: Literal["last", "text"] | Sequence[int] | Int[Tensor, "r"] = "last",
        block: Block = "previous",
    ) -> Float[Tensor, "H r n"]:
        """Attention probabilities from a few query rows to the visual tokens, float32.

        The softmax runs over every column the row may see; the full map is never built.

        Args:
            queries: the last column, all text after the last visual token (the last column if there is none), or
                columns among the p (negative: from the end; not in a tensor).
            block: with the states of the block that just ran, or with the norm and projections of the next one.
        """
        rows = self._rows(queries)
        keys = (
            self.rotated_keys if block == "previous" else self.rotate(self._project(block, "keys", None), None, block)
        )
        asked = self.rotate(self._project(block, "queries", rows), rows, block)
        source = self.source
        past, allowed = source.past(block), source.allowed(block, rows)
        weights = ops.attention_rows(asked, keys, rows, source.scaling(block), past, allowed, source.cap(block))
        return weights[..., self.visual]

    def _rows(self, queries: Literal["last", "text"] | Sequence[int] | Tensor) -> Int[Tensor, "r"]:
        if isinstance(queries, Tensor):
            return queries
        if queries == "text":
            return self.words
        p, device = len(self.states), self.states.device
        asked = [-1] if isinstance(queries, str) else list(queries)
        if wrong := [row for row in asked if not -p <= row < p]:
            raise ScorerError(f"query columns {wrong} do not exist: {p} columns are left at layer {self.layer}")
        return torch.tensor([row % p for row in asked], device=device)

    def _project(self, block: Block, name: Name, rows: Tensor | None) -> Tensor:
        states = self.source.project(block, name, rows)
        if states is None:
            raise ScorerError(
                f"at layer {self.layer} there is no {block} block to read queries, keys or values from: "
                "prune at layer 1 or later, or use a scorer of hidden states such as diversity"
            )
        return states
