"""Pictures of one encoding in groups of one size, and what is left of each.

A slot is what a pass keeps or drops whole: a CLS row, or the rows of one token. That is one row in CLIP's towers; where
the model merges, pools or shuffles patches, it is all rows that become one token, so that dropping one of them alone
would leave the projector nothing to merge. Slots are counted in their picture, rows and pictures in the whole encoding.

The rows of a token may lie anywhere in the grid of their picture when they come. What a stage leaves is put in the
order of tokens, so that from there on a token's rows are neighbours. Attention has no order, and rotary tables follow.

Scorers get dense batches without padding because the pictures of a group have equally many slots, before a stage and
after it: all of CLIP's pictures are one group, Qwen's have one for each size. The values here are frozen: a stage makes
new ones, and what is worked out from them once (which rows are left) is worked out once for all blocks up to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..errors import PromptError
from ..parts.vision import Call, TokenRows

LEFT = -1
"""The hole code of a slot that is still there."""


@dataclass(frozen=True, eq=False)
class Group:
    """`u` pictures of one size, and the `l` slots that are left of each.

    Attributes:
        members: which pictures of the encoding.
        slots: those left, ascending.
        sizes: how many tokens each stands for: 1 until tokens are merged.
        fault: the hole code of what a scorer did wrong first to each picture; 0: nothing.
    """

    members: tuple[int, ...]
    slots: Int[Tensor, "u l"]
    sizes: Float[Tensor, "u l"]
    fault: Int[Tensor, "u"]

    @property
    def left(self) -> int:
        return self.slots.shape[1]


@dataclass(frozen=True, eq=False)
class Survivors:
    """What is left of all pictures of one encoding.

    Attributes:
        groups: by size.
        counts: slots of each picture, as it came.
        cls: 1 where a CLS row is each picture's first slot, else 0.
        came: where the rows of each token were when they came.
        codes: of every slot that came, what its hole will say (`holes.py`), or `LEFT`.
        pruned: whether a stage has dropped some.
        proportional: whether attention counts each row as often as the tokens it stands for.
    """

    groups: tuple[Group, ...]
    counts: tuple[int, ...]
    cls: int
    came: TokenRows
    codes: Int[Tensor, "s"]
    pruned: bool = False
    proportional: bool = False

    @property
    def unit(self) -> int:
        """Rows of a token."""
        return self.came.unit

    @property
    def tokens_of_groups(self) -> list[int]:
        """By group, tokens of each picture as it came."""
        return [self.counts[group.members[0]] - self.cls for group in self.groups]

    @property
    def rows_that_came(self) -> int:
        pictures = len(self.counts)
        return (sum(self.counts) - self.cls * pictures) * self.unit + self.cls * pictures

    @cached_property
    def slots_as_they_came(self) -> list[Int[Tensor, "u l"]]:
        """By group, the slots that are left, counted in all that came."""
        firsts = self._firsts([tokens + self.cls for tokens in self.tokens_of_groups])
        return [first[:, None] + group.slots for first, group in zip(firsts, self.groups, strict=True)]

    @cached_property
    def tokens_as_they_came(self) -> list[Int[Tensor, "u k"]]:
        """By group, the tokens that are left, counted in all that came."""
        firsts, cls = self._firsts(self.tokens_of_groups), self.cls
        return [first[:, None] + group.slots[:, cls:] - cls for first, group in zip(firsts, self.groups, strict=True)]

    @cached_property
    def rows_of_tokens(self) -> list[Int[Tensor, "u k m"]]:
        """By group, the rows of each token that is left, counted in those that are left."""
        if not self.pruned:
            return self._rows_as_they_came
        left = [torch.arange(group.left - self.cls, device=self.codes.device) for group in self.groups]
        return self._rows_side_by_side(self._rows_left, left)

    @cached_property
    def kept_rows(self) -> Int[Tensor, "r"]:
        """Rows that are left, counted in those that came, in the order that they are in."""
        return self._with_cls_rows(self._rows_came, self._rows_as_they_came)

    @cached_property
    def narrowed(self) -> dict[tuple[int, ...], tuple[Call, Call]]:
        """Calls of blocks with all arguments, and with those for the rows left here (`calls.narrow`); empty at first.

        By the identity of all arguments. It ends with these survivors: those of the next stage are other rows.
        """
        return {}

    @cached_property
    def sizes_of_rows(self) -> Float[Tensor, "r"]:
        """How many tokens each row that is left stands for."""
        parts = [(group.sizes[:, : self.cls], group.sizes[:, self.cls :]) for group in self.groups]
        return self.in_order([torch.cat([cls, own.repeat_interleave(self.unit, 1)], 1) for cls, own in parts])

    @cached_property
    def faults(self) -> Int[Tensor, "s"]:
        """Of every slot that came, the fault noted of its picture."""
        counts = [self.counts[group.members[0]] for group in self.groups]
        parts = zip(self.groups, counts, strict=True)
        return self.in_order([group.fault[:, None].expand(-1, count) for group, count in parts])

    def in_order(self, parts: Sequence[Shaped[Tensor, "u w"]]) -> Shaped[Tensor, "r"]:
        """What groups have of their pictures, equally much of each, as one row: picture after picture."""
        if len(parts) == 1:
            return parts[0].flatten()
        firsts = self._firsts([part.shape[1] for part in parts])
        steps = [torch.arange(part.shape[1], device=part.device) for part in parts]
        places = [(first[:, None] + step).flatten() for first, step in zip(firsts, steps, strict=True)]
        flat = torch.cat([part.flatten() for part in parts])
        return torch.empty_like(flat).index_copy_(0, torch.cat(places), flat)

    def rows_of(self, tokens: Sequence[Int[Tensor, "u k m"]]) -> Int[Tensor, "r"]:
        """Of the rows that are left, all CLS rows and these tokens', picture after picture."""
        return self._with_cls_rows(self._rows_left if self.pruned else self._rows_came, tokens)

    def entering_projector(self, rows: int) -> Survivors:
        """What is left where the projector gets so many rows: maybe without the CLS rows, maybe one of each token.

        Raises:
            PromptError: these are not the rows of the tower's last block.
        """
        pictures = len(self.counts)
        left = sum(own * len(group.members) for own, group in zip(self._rows_left, self.groups, strict=True))
        tokens = left - self.cls * pictures
        if rows == left:
            return self
        if rows in (tokens, tokens // self.unit):
            return self.as_tokens(self.unit if rows == tokens else 1)
        raise PromptError(
            f"the projector gets {rows} rows where passes inside the vision tower left {left}: leave "
            "vision_feature_layer and vision_feature_select_strategy as the config has them"
        )

    def as_tokens(self, unit: int) -> Survivors:
        """Without CLS rows, and with `unit` rows of each token, which models make one before the projector or in it.

        LLaVA cuts the CLS rows off: from there on they are no slots, and get no rows back. Video-LLaVA lets those of
        frames through, where they become visual tokens.
        """
        cls = self.cls
        groups = tuple(
            replace(group, slots=group.slots[:, cls:] - cls, sizes=group.sizes[:, cls:]) for group in self.groups
        )
        codes = torch.cat([codes[cls:] for codes in torch.split(self.codes, list(self.counts))])
        tokens = tuple(count - cls for count in self.counts)
        return replace(self, groups=groups, counts=tokens, cls=0, came=TokenRows(tokens, unit), codes=codes)

    @property
    def _rows_came(self) -> list[int]:
        """By group, rows of each picture as it came."""
        return [self.cls + self.unit * tokens for tokens in self.tokens_of_groups]

    @property
    def _rows_left(self) -> list[int]:
        """By group, rows that are left of each picture."""
        return [self.cls + self.unit * (group.left - self.cls) for group in self.groups]

    @cached_property
    def _rows_as_they_came(self) -> list[Int[Tensor, "u k m"]]:
        """By group, the rows of each token that is left, counted in those that came."""
        if (rows := self.came.rows) is not None:
            return [rows[tokens] for tokens in self.tokens_as_they_came]
        return self._rows_side_by_side(
            self._rows_came, [group.slots[:, self.cls :] - self.cls for group in self.groups]
        )

    def _rows_side_by_side(
        self, lengths: Sequence[int], tokens: Sequence[Int[Tensor, "*u k"]]
    ) -> list[Int[Tensor, "u k m"]]:
        """By group, the rows of these tokens of pictures of so many rows, where they follow each other."""
        step = torch.arange(self.unit, device=self.codes.device)
        return [
            first[:, None, None] + self.cls + self.unit * own[..., None] + step
            for first, own in zip(self._firsts(lengths), tokens, strict=True)
        ]

    def _with_cls_rows(self, lengths: Sequence[int], tokens: Sequence[Int[Tensor, "u k m"]]) -> Int[Tensor, "r"]:
        firsts = [first[:, None][:, : self.cls] for first in self._firsts(lengths)]
        return self.in_order([torch.cat([cls, own.flatten(1)], 1) for cls, own in zip(firsts, tokens, strict=True)])

    def _firsts(self, lengths: Sequence[int]) -> list[Int[Tensor, "u"]]:
        """By group, where each picture begins, if those of the k-th group are `lengths[k]` long."""
        device = self.codes.device
        if len(self.groups) == 1:  # nothing to look up, so nothing to copy to the device
            return [torch.arange(len(self.counts), device=device) * lengths[0]]
        each = {number: n for group, n in zip(self.groups, lengths, strict=True) for number in group.members}
        firsts = list(accumulate((each[number] for number in range(len(each))), initial=0))
        return [torch.tensor([firsts[number] for number in group.members], device=device) for group in self.groups]


def arriving(came: TokenRows, rows: int, device: torch.device) -> Survivors:
    """Pictures laid out so, in an encoding of `rows` rows; what is over is CLS rows."""
    cls = (rows - came.unit * sum(came.tokens)) // len(came.tokens)
    counts = tuple(count + cls for count in came.tokens)
    groups = []
    for count in dict.fromkeys(counts):
        members = tuple(number for number, other in enumerate(counts) if other == count)
        slots = torch.arange(count, device=device).expand(len(members), count)
        fault = torch.zeros(len(members), dtype=torch.long, device=device)
        groups.append(Group(members, slots, torch.ones(slots.shape, device=device), fault))
    if came.rows is not None:
        came = replace(came, rows=came.rows.to(device))
    return Survivors(tuple(groups), counts, cls, came, torch.full((sum(counts),), LEFT, device=device))
