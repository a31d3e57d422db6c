"""Pictures of one encoding in groups of one size, and what is left of each.

A slot is what a pass keeps or drops whole: a CLS row, or the rows of one token. That is one row in CLIP's towers; in
Qwen's it is a merge unit, four rows that the projector makes one token of, so that dropping one of them alone would
leave the projector nothing to merge. Slots are counted in their picture, rows and pictures in the whole encoding.

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
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import PromptError
from ..parts.vision import Call

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
        unit: rows of a slot.
        codes: of every slot that came, what its hole will say (`holes.py`), or `LEFT`.
        pruned: whether a stage has dropped some.
        proportional: whether attention counts each row as often as the tokens it stands for.
    """

    groups: tuple[Group, ...]
    counts: tuple[int, ...]
    cls: int
    unit: int
    codes: Int[Tensor, "s"]
    pruned: bool = False
    proportional: bool = False

    @property
    def tokens_of_groups(self) -> list[int]:
        """By group, tokens of each picture as it came."""
        return [self.counts[group.members[0]] - self.cls for group in self.groups]

    @cached_property
    def slots_as_they_came(self) -> list[Int[Tensor, "u l"]]:
        """By group, the slots that are left, counted in all that came."""
        return [first[:, None] + group.slots for first, group in zip(self._first_that_came, self.groups, strict=True)]

    @cached_property
    def rows_of_slots(self) -> list[Int[Tensor, "u l m"]]:
        """By group, the rows of each slot that is left, counted in those that are left."""
        first_left = self._first_slots([group.left for group in self.groups])
        return [
            self._rows(first[:, None] + torch.arange(group.left, device=first.device))
            for first, group in zip(first_left, self.groups, strict=True)
        ]

    @cached_property
    def kept_rows(self) -> Int[Tensor, "r"]:
        """Rows that are left, counted in those that came, ascending."""
        return in_order([self._rows(slots) for slots in self.slots_as_they_came])

    @cached_property
    def narrowed(self) -> dict[tuple[int, ...], tuple[Call, Call]]:
        """Calls of blocks with all arguments, and with those for the rows left here (`calls.narrow`); empty at first.

        By the identity of all arguments. It ends with these survivors: those of the next stage are other rows.
        """
        return {}

    @cached_property
    def sizes_of_rows(self) -> Float[Tensor, "r"]:
        """How many tokens each row that is left stands for."""
        rows = torch.cat([slots.flatten() for slots in self.rows_of_slots])
        sizes = torch.cat([group.sizes[..., None].expand(-1, -1, self.unit).flatten() for group in self.groups])
        return torch.empty_like(sizes).index_copy(0, rows, sizes)

    @cached_property
    def faults(self) -> Int[Tensor, "s"]:
        """Of every slot that came, the fault noted of its picture."""
        if len(self.groups) == 1:
            return self.groups[0].fault[:, None].expand(-1, self.counts[0]).flatten()
        faults = torch.zeros_like(self.codes)
        for first, group in zip(self._first_that_came, self.groups, strict=True):
            slots = first[:, None] + torch.arange(self.counts[group.members[0]], device=first.device)
            faults[slots] = group.fault[:, None].expand_as(slots)
        return faults

    def entering_projector(self, rows: int) -> Survivors:
        """What is left where the projector gets so many rows: maybe without the CLS rows.

        Raises:
            PromptError: these are not the rows of the tower's last block.
        """
        left = sum(group.left * len(group.members) for group in self.groups)
        if self.cls and rows == left - len(self.counts):
            return self._without_cls()
        if rows != left * self.unit:
            raise PromptError(
                f"the projector gets {rows} rows where passes inside the vision tower left {left * self.unit}: leave "
                "vision_feature_layer and vision_feature_select_strategy as the config has them"
            )
        return self

    def _without_cls(self) -> Survivors:
        """LLaVA cuts the CLS rows off before the projector: from here on they are no slots, and get no rows back.

        Video-LLaVA lets those of frames through, where they become visual tokens.
        """
        groups = tuple(replace(group, slots=group.slots[:, 1:] - 1, sizes=group.sizes[:, 1:]) for group in self.groups)
        codes = torch.cat([codes[1:] for codes in torch.split(self.codes, list(self.counts))])
        return replace(self, groups=groups, counts=tuple(count - 1 for count in self.counts), cls=0, codes=codes)

    @cached_property
    def _first_that_came(self) -> list[Int[Tensor, "u"]]:
        return self._first_slots([self.counts[group.members[0]] for group in self.groups])

    def _first_slots(self, lengths: Sequence[int]) -> list[Int[Tensor, "u"]]:
        """By group, the first slot of each picture, where the pictures of the k-th group have `lengths[k]` slots."""
        device = self.codes.device
        if len(self.groups) == 1:  # nothing to look up, so nothing to copy to the device
            return [torch.arange(len(self.counts), device=device) * lengths[0]]
        each = {number: n for group, n in zip(self.groups, lengths, strict=True) for number in group.members}
        firsts = list(accumulate((each[number] for number in range(len(each))), initial=0))
        return [torch.tensor([firsts[number] for number in group.members], device=device) for group in self.groups]

    def _rows(self, slots: Int[Tensor, "u l"]) -> Int[Tensor, "u l m"]:
        if self.unit == 1:
            return slots[..., None]
        return self.unit * slots[..., None] + torch.arange(self.unit, device=slots.device)


def arriving(tokens: Sequence[int], unit: int, rows: int, device: torch.device) -> Survivors:
    """Pictures of so many tokens each, of `unit` rows, in an encoding of `rows` rows; what is over is CLS rows."""
    cls = (rows - unit * sum(tokens)) // len(tokens)
    counts = tuple(count + cls for count in tokens)
    groups = []
    for count in dict.fromkeys(counts):
        members = tuple(number for number, other in enumerate(counts) if other == count)
        slots = torch.arange(count, device=device).expand(len(members), count)
        fault = torch.zeros(len(members), dtype=torch.long, device=device)
        groups.append(Group(members, slots, torch.ones(slots.shape, device=device), fault))
    return Survivors(tuple(groups), counts, cls, unit, torch.full((sum(counts),), LEFT, device=device))


def in_order(parts: Sequence[Tensor]) -> Int[Tensor, "r"]:
    """The numbers of all groups together, ascending; those of each group ascend by themselves."""
    return parts[0].flatten() if len(parts) == 1 else torch.cat([part.flatten() for part in parts]).sort().values
