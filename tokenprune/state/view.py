"""Which columns of a prompt a depth still sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .. import ops


@dataclass(frozen=True, eq=False)
class View:
    """Which prompt columns a depth still sees. Rows that keep fewer than `k` are padded on the left (`valid` False).

    Attributes:
        index: columns of the prompt.
        valid: which of them are real.
        lengths: real ones per prompt, as Python ints: asking costs no device sync.
        span: prompt columns the view was made from.
    """

    index: Int[Tensor, "b k"]
    valid: Bool[Tensor, "b k"]
    lengths: tuple[int, ...]
    span: int

    @classmethod
    def full(cls, valid: Bool[Tensor, "b s"], lengths: Sequence[int]) -> View:
        """Every column of the prompt; `valid` is its attention mask."""
        b, s = valid.shape
        return cls(torch.arange(s, device=valid.device).expand(b, s), valid, tuple(lengths), s)

    @property
    def width(self) -> int:
        return self.index.shape[1]

    @property
    def padded(self) -> bool:
        return any(length != self.width for length in self.lengths)

    def narrow(self, keep: Bool[Tensor, "b k"], lengths: Sequence[int]) -> tuple[View, Int[Tensor, "b j"]]:
        """The view of the columns marked in `keep`, and which of this view's columns they are."""
        local, valid = ops.compact_right(keep, max(lengths))
        return View(self.index.gather(1, local), valid, tuple(lengths), self.span), local

    def select(self, rows: Int[Tensor, "j"]) -> View:
        """The same view for other batch rows (beam reorder, repeat, selection)."""
        rows = rows.to(self.index.device)
        lengths = tuple(self.lengths[i] for i in rows.tolist())
        return View(self.index[rows], self.valid[rows], lengths, self.span)

    def shorten(self, columns: int) -> View:
        """The view without the last columns of its prompt, which every row sees."""
        lengths = tuple(length - columns for length in self.lengths)
        return View(self.index[:, :-columns], self.valid[:, :-columns], lengths, self.span - columns)

    def without(self, row: int, column: int) -> View:
        """The view without one column (counted in it) of one prompt: nobody sees it any more, its place stays."""
        valid, lengths = self.valid.clone(), list(self.lengths)
        valid[row, column] = False
        lengths[row] -= 1
        return View(self.index, valid, tuple(lengths), self.span)

    def marked(self) -> Bool[Tensor, "b s"]:
        """Which columns of the prompt are seen."""
        marked = torch.zeros(len(self.valid), self.span, dtype=torch.bool, device=self.valid.device)
        return marked.scatter(1, self.index, self.valid)

    def columns(self, row: int, drafts: int = 0) -> slice | Int[Tensor, "p"]:
        """The real columns of one prompt, counted in this view, without the last `drafts`; a slice if that is all."""
        if self.lengths[row] == self.width:
            return slice(self.width - drafts)
        return self.valid[row].int().argsort(stable=True)[-self.lengths[row] :][: self.lengths[row] - drafts]

    def to(self, device: torch.device) -> View:
        return View(self.index.to(device), self.valid.to(device), self.lengths, self.span)
