"""What a scorer may look at: one prompt at the depth where it is pruned, read lazily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import ops
from ..errors import PromptError, ScorerError

if TYPE_CHECKING:
    from .vision import Vision


Project = Callable[[str, Tensor | None], Tensor]
"""`project("queries" | "keys" | "values", rows)`: heads x rows x dh before RoPE; rows None = every column."""


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
        previous: projections of block `layer - 1`, as the model computed them (None at layer 0).
        following: projections of block `layer`, computed on demand for the rows asked.
        past: valid keys (`h c dh`, with RoPE, and which of the c count) of earlier turns in the `previous` or `next`
            block; None in a first turn.
        rotate: applies RoPE to heads x rows x dh states of the given rows (None = every column).
        scaling: of the attention logits.
        norm: the decoder's final norm.
        embedded: `embeddings` and `shown`.
        look: finds the vision tower's states of these tokens; None where there are none to read.
        spell: the text after the last visual token, read by the processor; None without one.
        scores: what the scorer gave, for a merger; None before.
    """

    layer: int
    keep: int
    ids: Int[Tensor, "s"]
    columns: Int[Tensor, "n"]
    visual: Int[Tensor, "n"]
    question: int
    states: Float[Tensor, "p d"]
    previous: Project | None = None
    following: Project | None = None
    past: Callable[[str], tuple[Tensor, Tensor]] | None = None
    rotate: Callable[[Tensor, Tensor | None], Tensor] = lambda states, rows: states
    scaling: float = 1.0
    norm: Callable[[Tensor], Tensor] = lambda states: states
    embedded: Callable[[], tuple[Tensor, Tensor]] | None = None
    look: Callable[[], Vision] | None = None
    spell: Callable[[], str] | None = None
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
        places = torch.arange(n)
        return cls(
            layer=1,
            keep=keep,
            ids=places,
            columns=places,
            visual=places,
            question=0,
            states=hidden if hidden is not None else torch.zeros(n, 1),
            previous=lambda name, rows: given[name] if rows is None else given[name][:, rows],
            look=None if vision is None else lambda: vision,
        )

    @property
    def hidden(self) -> Float[Tensor, "n d"]:
        """Hidden states of the visual tokens entering block `layer`; projector rows at layer 0."""
        return self.states[self.visual]

    @cached_property
    def normed(self) -> Float[Tensor, "p d"]:
        """`states` under the decoder's final norm."""
        return self.norm(self.states)

    @cached_property
    def embeddings(self) -> Float[Tensor, "s d"]:
        """What entered block 0, of the whole prompt: tokens dropped since are included."""
        return self._embedded[0]

    @property
    def shown(self) -> Int[Tensor, "m"]:
        """Which `embeddings` are of visual tokens."""
        return self._embedded[1]

    @cached_property
    def _embedded(self) -> tuple[Tensor, Tensor]:
        if self.embedded is None:
            raise ScorerError("this prompt has no embeddings: give its Seen embedded=lambda: (states, visual columns)")
        return self.embedded()

    @property
    def words(self) -> Int[Tensor, "t"]:
        """Places among the p columns of the text after the last visual token; the last column if there is none."""
        p = len(self.states)
        return torch.arange(p - max(self.question, 1), p, device=self.states.device)

    @cached_property
    def queries(self) -> Float[Tensor, "H n dh"]:
        """Query states of the visual tokens in the last block that saw them all, before RoPE."""
        return self._block("previous")("queries", self.visual)

    @cached_property
    def keys(self) -> Float[Tensor, "h n dh"]:
        """Key states, likewise."""
        return self._block("previous")("keys", self.visual)

    @cached_property
    def values(self) -> Float[Tensor, "h n dh"]:
        """Value states, likewise."""
        return self._block("previous")("values", self.visual)

    @cached_property
    def rotated_keys(self) -> Float[Tensor, "h p dh"]:
        """Key states of every column that is left, text included, with RoPE."""
        return self.rotate(self._block("previous")("keys", None), None)

    @property
    def vision(self) -> Vision:
        """The vision tower's states of these tokens, at layer 0. The scorer's `reads_blocks` says which blocks."""
        if self.look is None:
            raise ScorerError(
                f"no states of the vision tower at layer {self.layer}: they are there at layer 0, for scorers and "
                "mergers whose `reads_blocks` names the blocks they read"
            )
        return self.look()

    @property
    def text(self) -> str:
        """The text after the last visual token. PromptError if the model was pruned without its processor."""
        if self.spell is None:
            raise PromptError(
                "the scorer reads the question as text, which needs the model's processor: tokenprune.prune(model, "
                "recipe, processor=processor)"
            )
        return self.spell()

    def attention(
        self,
        queries: Literal["last", "text"] | Sequence[int] | Int[Tensor, "r"] = "last",
        block: Literal["previous", "next"] = "previous",
    ) -> Float[Tensor, "H r n"]:
        """Attention probabilities from a few query rows to the visual tokens, float32.

        The softmax runs over every column the row may see; the full map is never built.

        Args:
            queries: the last column, all text after the last visual token (the last column if there is none), or
                columns among the p (negative: from the end; not in a tensor).
            block: with the states of the block that just ran, or with the norm and projections of the next one.
        """
        rows = self._rows(queries)
        project = self._block(block)
        every = self.rotated_keys if block == "previous" else self.rotate(project("keys", None), None)
        past = self.past(block) if self.past else None
        asked = self.rotate(project("queries", rows), rows)
        weights = ops.attention_rows(asked, every, rows, self.scaling, past)
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

    def _block(self, which: Literal["previous", "next"]) -> Project:
        project = self.previous if which == "previous" else self.following
        if project is None:
            raise ScorerError(
                f"at layer {self.layer} there is no {which} block to read queries, keys or values from: "
                "prune at layer 1 or later, or use a scorer of hidden states such as diversity"
            )
        return project
