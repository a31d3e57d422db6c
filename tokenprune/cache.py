"""A cache that was pruned: its first layer owns the PromptState and reports the length the caller believes in."""

from __future__ import annotations

from functools import cache as memo
from typing import Any, Protocol

from torch import Tensor

from .errors import PromptError


class Owned(Protocol):
    """What the cache does to its prompt."""

    @property
    def hidden(self) -> int: ...
    @property
    def end(self) -> int: ...
    def select(self, rows: Tensor) -> Any: ...
    def repeat(self, repeats: int) -> Any: ...


class PromptOwner:
    """Mixin for the first layer of a cache.

    The state lives in the cache, so it goes wherever the cache goes: kept between turns, deep-copied, reordered by
    beams, freed with it. Two conversations on one model can never mix. If the first layer itself was pruned, its
    length still counts the dropped columns: callers slice follow-up turns and number positions by it.
    """

    prompt: Owned | None

    def get_seq_length(self) -> int:
        physical = self.physical_length()
        return physical if self.prompt is None else physical + self.prompt.hidden

    def physical_length(self) -> int:
        return super().get_seq_length()  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.prompt is not None:
            self.prompt = self.prompt.repeat(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        room = self.get_seq_length() - self.prompt.end if self.prompt is not None else abs(tokens_to_remove)
        if abs(tokens_to_remove) > room:
            raise PromptError(
                f"cannot take {abs(tokens_to_remove)} columns off a cache that grew by {room} since its last pruned "
                "prompt: blocks hold different columns of it. Copy the cache before the prompt instead."
            )
        super().crop(tokens_to_remove)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.prompt = None

    def _select(self, rows: Tensor) -> None:
        if self.prompt is not None:
            self.prompt = self.prompt.select(rows)


@memo
def _owner_type(layer_type: type) -> type:
    return type(f"Pruned{layer_type.__name__}", (PromptOwner, layer_type), {})


def own(cache: Any, prompt: Owned) -> None:
    """Let the cache own the prompt: its first layer becomes one that knows it, around the same tensors."""
    layer: Any = cache.layers[0]
    if not isinstance(layer, PromptOwner):
        owner: Any = object.__new__(_owner_type(layer.__class__))
        owner.__dict__.update(layer.__dict__)
        cache.layers[0] = layer = owner
    layer.prompt = prompt


def owned(cache: Any) -> Any | None:
    """The prompt that owns this cache, or None."""
    layers = getattr(cache, "layers", None)
    return getattr(layers[0], "prompt", None) if layers else None


def physical_length(cache: Any, block: int) -> Any:
    """How many columns a block really holds; a tensor for static caches, as with transformers."""
    layer = cache.layers[block] if block < len(cache.layers) else None  # appended when the block first runs
    count = getattr(layer, "physical_length", None) or getattr(layer, "get_seq_length", None)
    return count() if count is not None else 0


def room(cache: Any) -> int | None:
    """The columns that a static cache is made for; None for caches that grow."""
    return cache.layers[0].max_cache_len if getattr(cache, "is_compileable", False) else None


class PhysicalLength:
    """What mask creation asks of a cache, answered for one block."""

    def __init__(self, cache: Any, block: int) -> None:
        self.length = physical_length(cache, block)
        self.is_compileable = getattr(cache, "is_compileable", False)
        self.room = room(cache)

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length if self.room is None else self.room, 0
