"""Which blocks of a config stay when it is made small, and what its fields say of those."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

_NUMBERS = re.compile(r".*(idx|index|layer|block).*")
_FROM_START, _TO_END = re.compile(r"first_k_.*|max_window_layers"), re.compile(r"num_kv_shared_layers")
_SOURCES = re.compile(r".*_source_(layers|blocks)")
_DEPTH = re.compile(r"(num_|n_|.*_num_|resampler_)?(hidden_|encoder_|decoder_|global_)*(layers|depth)")


def whole(value: Any) -> TypeGuard[int]:
    """Whether it is an integer; truth values are not."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Blocks:
    """Of a config of `depth` blocks, those that stay."""

    depth: int
    kept: Sequence[int]

    @classmethod
    def of(cls, fields: Mapping[str, Any], depth: int, most: int) -> Blocks:
        """Two of each kind where there are two, then the first ones, `most` in all; more only to have one of each."""
        kinds: dict[tuple[str, ...], list[int]] = {}
        for block in range(depth):
            kinds.setdefault(tuple(_kind(fields, depth, block)), []).append(block)
        wanted = [block for turn in range(2) for found in kinds.values() for block in found[turn : turn + 1]]
        wanted += [block for block in range(depth) if block not in wanted]
        return cls(depth, sorted(wanted[: max(most, min(len(kinds), 2 * most))]))

    def value(self, name: str, value: Any) -> Any:
        """What a field says of the blocks that stay; as it is if it is not about blocks."""
        if isinstance(value, (list, tuple)):
            if _are_numbers(name, value, self.depth):
                return [new for new, block in enumerate(self.kept) if block in value]
            value = [value[block] for block in self.kept] if len(value) == self.depth > 0 else value
            return [self._at_most(block) for block in value] if _SOURCES.fullmatch(name) else value
        if not whole(value):
            return value
        if _FROM_START.fullmatch(name):
            return sum(block < value for block in self.kept)
        if _TO_END.fullmatch(name):
            return sum(block >= self.depth - value for block in self.kept)
        return min(value, len(self.kept) or 2) if _DEPTH.fullmatch(name) else value

    def _at_most(self, old: int) -> int:
        """The last block that stays, of this one and those before it."""
        return max((new for new, block in enumerate(self.kept) if block <= old), default=0)

    def layers(self, overrides: Mapping[int | str, Any]) -> dict[int, dict[str, Any]]:
        """Fields that single blocks have of their own, by the new number of the block."""
        return {self.kept.index(int(old)): dict(own) for old, own in overrides.items() if int(old) in self.kept}


def _kind(fields: Mapping[str, Any], depth: int, block: int) -> Iterator[str]:
    """What the fields say of one block."""
    for name, value in fields.items():
        if isinstance(value, (list, tuple)) and _are_numbers(name, value, depth):
            yield str(block in value)
        elif isinstance(value, (list, tuple)) and len(value) == depth:
            yield str(value[block] == block if _SOURCES.fullmatch(name) else value[block])
        elif name == "per_layer_config":
            yield str(next((layer for number, layer in (value or {}).items() if int(number) == block), None))
        elif whole(value) and _FROM_START.fullmatch(name):
            yield str(block < value)
        elif whole(value) and _TO_END.fullmatch(name):
            yield str(block < depth - value)


def _are_numbers(name: str, values: Sequence[Any], depth: int) -> bool:
    """Whether these are numbers of blocks, and not a value for each."""
    rising = all(map(whole, values)) and all(a < b for a, b in pairwise(values))
    return bool(values) and rising and values[-1] < depth and _NUMBERS.fullmatch(name) is not None
