"""A cache that was pruned: its first layers own the Prompt and report the length the caller believes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache as memo
from typing import Any

import torch
from torch import Tensor

from ..errors import PromptError
from .prompt import Prompt, ViewLayers


class PromptOwner:
    """Mixin for the layers of a cache that callers ask for its length: the first with columns, and the first of those
    with and without a window, by which transformers sizes its masks.

    The state lives in the cache, so it goes wherever the cache goes: kept between turns, deep-copied, reordered by
    beams, freed with it. Two conversations on one model can never mix. If such a layer itself was pruned, its
    length still counts the dropped columns: callers slice follow-up turns, number positions and make masks by it.

    A pruned cache goes on only where a pruning block follows: anywhere else the model would make masks and positions
    for columns that are not there.
    """

    keys: Tensor
    is_compileable: bool
    max_cache_len: int
    prompt: Prompt | None
    fixed: Mapping[ViewLayers, tuple[Tensor, Tensor | None]]
    """Of a static cache: `Prompt.in_static_cache`."""
    first_pruned: int | None
    """`Prompt.first_pruned`. This and `missing` are asked in code that torch.compile traces."""
    missing: int
    """`Prompt.missing` of this layer's block."""
    block: int
    active: bool = False  # by a pruning block, for the length of a pass

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if self.first_pruned is not None and not self.active:
            raise PromptError(
                "this cache was pruned, and no pruning block follows this pass: go on inside `with tokenprune.prune("
                "model, recipe)`, where any recipe will do, or start from an empty cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self) -> int:
        physical = self.physical_length()
        return physical + self.missing

    def physical_length(self) -> int:
        return super().get_seq_length()  # type: ignore[misc]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        window = getattr(self, "sliding_window", None)
        if window is None:
            return super().get_mask_sizes(query_length)  # type: ignore[misc]
        before = min(self.get_seq_length(), window - 1)  # as if it held its last columns
        return before + query_length, self.get_seq_length() - before

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.prompt is not None:
            self.own(self.prompt.repeat(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        before, lacking = int(self.get_seq_length()), self.prompt and self.prompt.lacking
        # negative, or (in earlier transformers) what shall be left
        gone = -tokens_to_remove if tokens_to_remove <= 0 else max(0, before - tokens_to_remove)
        back = 0
        if lacking is not None:
            room = before - lacking.end
            back = max(0, gone - room)  # drafts that came with the prompt
            if back > lacking.drafts:
                raise PromptError(
                    f"cannot take {gone} columns off a cache that grew by {room} since its last pruned prompt: they "
                    "had a part in what was dropped. Copy the cache before the prompt instead; an assistant_model has "
                    "to stay unpruned."
                )
            windowed = getattr(self, "sliding_window", None) is not None  # says by itself what it cannot give back
            if not windowed and (self.keys.ndim != 4 or self.keys.shape[-2] != self.physical_length()):
                raise PromptError(
                    f"a {type(self).__bases__[1].__name__} cannot give columns back, which assisted and look-up "
                    "decoding need: leave cache_implementation at its default, or decode without them"
                )
        super().crop(tokens_to_remove)  # type: ignore[misc]
        if self.prompt is not None and before - gone < self.prompt.end:  # prompts that lack nothing need no owner
            self.own(lacking.without(back) if lacking is not None and back else lacking)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.own(None)

    def own(self, prompt: Prompt | None) -> None:
        self.prompt, self.fixed = prompt, {}
        self.first_pruned = None if prompt is None else prompt.first_pruned
        self.missing = 0 if prompt is None else prompt.missing(self.block)
        if prompt is not None and self.is_compileable:
            self.fixed = prompt.in_static_cache(self.max_cache_len, self.keys.device)

    def _select(self, rows: Tensor) -> None:
        if self.prompt is not None:
            self.own(self.prompt.select(rows))


@memo
def _owner_type(layer_type: type) -> type:
    return type(f"Pruned{layer_type.__name__}", (PromptOwner, layer_type), {})


def own(cache: Any, prompt: Prompt) -> None:
    """Let the cache own the prompt: its first layers become ones that know it, around the same tensors."""
    for block in _first(cache.layers):
        layer: Any = cache.layers[block]
        if not isinstance(layer, PromptOwner):
            owner: Any = object.__new__(_owner_type(layer.__class__))
            owner.__dict__.update(layer.__dict__)
            owner.block = block
            cache.layers[block] = layer = owner
        layer.own(prompt)


def _first(layers: Sequence[Any]) -> list[int]:
    """The first layer that keeps columns, and the first of those with and without a window."""
    found: dict[bool, int] = {}
    for number, layer in enumerate(layers):
        if getattr(layer, "keys", None) is not None:
            found.setdefault(bool(getattr(layer, "is_sliding", False)), number)
    return sorted(found.values())


def _owner(cache: Any) -> PromptOwner | None:
    """The first layer that keeps columns, if a prompt owns the cache. torch.compile traces this."""
    for layer in getattr(cache, "layers", None) or ():
        if isinstance(layer, PromptOwner):
            return layer
        if getattr(layer, "keys", None) is not None:
            return None
    return None


def fixed(cache: Any) -> Mapping[ViewLayers, tuple[Tensor, Tensor | None]]:
    """Of a static cache that is owned: `Prompt.in_static_cache`."""
    owner = _owner(cache)
    assert owner is not None
    return owner.fixed


def owned(cache: Any) -> Prompt | None:
    """The prompt that owns this cache, or None."""
    owner = _owner(cache)
    return None if owner is None else owner.prompt


def first_pruned(cache: Any) -> int | None:
    """The first block that lacks columns of the conversation in this cache, or None."""
    owner = _owner(cache)
    return None if owner is None else owner.first_pruned


def mark_active(cache: Any, active: bool) -> None:
    """Say whether a pruning block follows the pass that this cache is in."""
    for layer in getattr(cache, "layers", None) or ():
        if isinstance(layer, PromptOwner):
            layer.active = active


def length(layer: Any) -> Any:
    """How many columns a layer of a cache really holds; a tensor for static caches, as with transformers."""
    count = getattr(layer, "physical_length", None) or getattr(layer, "get_seq_length", None)
    return count() if count is not None else 0


def keys(cache: Any, block: int, row: int, device: torch.device) -> Tensor:
    """The keys that a block holds of one prompt, `h c dh`, wherever the cache keeps them."""
    layer = cache.layers[block]
    if getattr(cache, "offloading", False):  # they may be on their way back, on a stream of the cache
        torch.cuda.default_stream(device).wait_stream(cache.prefetch_stream)
    count = int(length(layer))
    if layer.keys.ndim != 4 or layer.keys.shape[-2] < count:  # a quantised layer has only the latest ones there
        raise PromptError(
            f"the scorer reads the keys of earlier turns, which a {type(cache).__name__} does not keep as they were: "
            "leave cache_implementation at its default, or use a scorer that reads no attention in later turns"
        )
    return layer.keys[row, :, :count].to(device)


def room(cache: Any) -> int | None:
    """The columns that a static cache is made for; None for caches that grow."""
    for layer in cache.layers if getattr(cache, "is_compileable", False) else ():  # torch.compile traces this
        if hasattr(layer, "max_cache_len"):
            return int(layer.max_cache_len)
    return None


def window(cache: Any, block: int) -> int | None:
    """Of how many columns, its own included, a block's cache keeps those that a new one sees; None for all."""
    layers = getattr(cache, "layers", ())
    return getattr(layers[block], "sliding_window", None) if block < len(layers) else None


class PhysicalLength:
    """What mask creation asks of a cache, answered for one block."""

    def __init__(self, cache: Any, block: int) -> None:
        layer = cache.layers[block] if block < len(cache.layers) else None  # appended when the block first runs
        self.length = length(layer)
        self.is_compileable = getattr(cache, "is_compileable", False)
        self.room = room(cache)

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length if self.room is None else self.room, 0
