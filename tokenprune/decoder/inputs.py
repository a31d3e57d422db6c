"""What a forward pass was given: its columns, the mask over them, which hold pictures; or why it cannot be followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PromptError
from ..model.anatomy import FULL, Anatomy
from ..state import cache as caches
from ..state.prompt import Prompt
from ..state.view import View
from .pipeline import BOTH_WAYS

PACKED = "several prompts share one row (continuous batching, padding-free training); give each prompt a row of its own"
NO_IDS = (
    "it needs input_ids to see which columns are visual, got inputs_embeds without a row that is the embedding of a "
    "placeholder; pass input_ids, or such embeddings together with the pictures"
)


@dataclass(frozen=True, eq=False)
class PassInput:
    """One forward pass of the base model, as pruning reads it.

    Attributes:
        arguments: of its forward, by name.
        ids: token ids of a prompt that starts here, -1 for text that came as embeddings; None in all other passes.
        mask: the caller's, over all columns so far; None hides nothing.
        cache: of the conversation.
        earlier: the prompt that owns it.
        start: columns of the conversation before this pass; 0 in decode steps, which need not ask.
        width: columns of this pass.
        total: columns of the conversation with those of this pass, or of the mask where that has room for more.
        device: of what is new.
        fed: whether it brings pictures.
        drafts: last columns that somebody else drafted, and that are checked in this pass.
    """

    arguments: Mapping[str, Any]
    ids: Int[Tensor, "b s"] | None
    mask: Tensor | None
    cache: Any
    earlier: Prompt | None
    start: int
    width: int
    total: int
    device: torch.device
    fed: bool = False
    drafts: int = 0


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a new prompt batch: which are real, which hold visual tokens; and these numbers per prompt.

    Attributes:
        view: of all that are real.
        visual: columns that hold visual tokens.
        counts: visual tokens.
        question: text tokens after the last one.
    """

    view: View
    visual: Bool[Tensor, "b s"]
    counts: tuple[int, ...]
    question: tuple[int, ...]


def read(arguments: Mapping[str, Any], anatomy: Anatomy, drafts: int, compiled: bool) -> PassInput | None:
    """What a pass was given; None where there is nothing to follow.

    A pass with pictures starts a prompt. Without them a placeholder of a later pass is a token like any other: drafted,
    say. But transformers 5.19 loses the pictures of a prompt that it prefills in chunks, so what follows a prompt that
    came without any may be more of it.

    Args:
        drafts: how many logits are asked for besides the last.
        compiled: whether torch.compile traces around this pass.

    Raises:
        PromptError: there is something to prune, or pruned already, and pruning cannot follow.
    """
    ids, cache = arguments.get("input_ids"), arguments.get("past_key_values")
    new = ids if ids is not None else arguments.get("inputs_embeds")
    if new is None:
        return None  # the model says what is missing
    prompt, width = caches.owned(cache), new.shape[1]
    step = prompt is not None and width == 1 and arguments.get("attention_mask") is not None  # need not ask the cache
    start = 0 if step or cache is None else int(cache.get_seq_length())
    mask = columns_of(arguments.get("attention_mask"), start, width)
    fed = not step and brings_pictures(arguments, anatomy)
    more = fed or (prompt is not None and prompt.bare)
    starts = not step and (not start or (ids is not None and width > 1 and more and shows(ids, anatomy)))
    if not starts and prompt is None:
        return None
    reason = refusal(arguments, mask, cache, anatomy, step=step, starts=starts, compiled=compiled)
    if starts and ids is None and (ids := recovered(new, anatomy)) is None:
        reason = NO_IDS
    if reason:
        pruned = prompt is not None and prompt.pruned
        if ids is not None and not pruned and not (starts and shows(ids, anatomy)):
            return None  # no picture: nothing to prune, nothing to refuse
        raise PromptError(f"pruning cannot read these inputs: {reason}")
    total = start + width if mask is None else mask.shape[1]
    if (longest := anatomy.adapter.longest(anatomy.config)) is not None and total > longest:
        raise PromptError(
            f"pruning cannot follow {total} columns: beyond {longest} this decoder counts positions by what its cache "
            "holds. Shorten the conversation, or prune less of it by hand"
        )
    starting = ids if starts else None
    return PassInput(arguments, starting, mask, cache, prompt, start, width, total, new.device, fed, drafts)


def locate(given: PassInput, anatomy: Anatomy) -> Columns:
    """The columns of the prompt that starts here, with one device sync.

    Raises:
        PromptError: a picture began in the pass before, or rows hold several prompts.
    """
    assert given.ids is not None
    ids, start = given.ids, given.start
    valid = torch.ones_like(ids, dtype=torch.bool)
    if given.mask is not None:
        valid = given.mask[:, start : start + ids.shape[1]].to(ids.device, torch.bool)
    visual = anatomy.visual(ids) & valid
    _refuse_split(given, visual)
    columns = torch.arange(ids.shape[1], device=ids.device)
    question = valid & (columns > torch.where(visual, columns, -1).amax(1, keepdim=True))
    numbers = [valid.sum(1), visual.sum(1), question.sum(1), _restarts(given, valid).sum(1)]
    lengths, counts, words, packed = torch.stack(numbers).tolist()  # the one sync
    if any(counts) and any(packed):
        raise PromptError(f"pruning cannot read these inputs: {PACKED}")
    return Columns(View.full(valid, lengths), visual, tuple(counts), tuple(words))


def _refuse_split(given: PassInput, visual: Bool[Tensor, "b s"]) -> None:
    """A picture that began in the pass before cannot be compared with what is left of it there."""
    earlier, start = given.earlier, given.start
    if earlier is None or earlier.end != start or not (earlier.visual[:, -1] & visual[:, 0]).any():
        return
    ends = start + int(visual.cumprod(1).sum(1).max())
    size = f"at least {ends}, which ends after this one" if ends < start + visual.shape[1] else "the whole prompt"
    raise PromptError(
        "a picture was split between two passes, so its tokens cannot be compared: leave prefill_chunk_size at "
        f"None, or choose {size}"
    )


def _restarts(given: PassInput, valid: Bool[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
    """Where positions go back within a row, as they do where another prompt begins."""
    restarts = torch.zeros_like(valid)
    positions = given.arguments.get("position_ids")
    if positions is not None:
        positions = positions.reshape(-1, *positions.shape[-2:])[0].to(valid.device)  # M-RoPE: text or time comes first
        restarts[:, 1:] = (positions[:, 1:] < positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    return restarts


def shows(ids: Int[Tensor, "b s"], anatomy: Anatomy) -> bool:
    """Whether placeholders are among these tokens."""
    return bool(anatomy.visual(ids).any())


def recovered(embeds: Float[Tensor, "b s d"], anatomy: Anatomy) -> Int[Tensor, "b s"] | None:
    """Token ids read back from embeddings, as models look for placeholders: -1 for text, None without any."""
    table = anatomy.base.get_input_embeddings()  # type: ignore[operator]
    ids = embeds.new_full(embeds.shape[:2], -1, dtype=torch.long)
    for mark in anatomy.placeholders(embeds.device):
        ids = ids.where((embeds != table(mark)).any(-1), mark)
    return ids if (ids >= 0).any() else None


def brings_pictures(arguments: Mapping[str, Any], anatomy: Anatomy) -> bool:
    """Whether pictures come with a pass: as an argument that the decoder does not take itself."""
    return any(pictures(value) for name, value in arguments.items() if name not in anatomy.decoder_arguments)


def pictures(given: Any) -> bool:
    """Whether an argument brings pictures: pixels or features, on their own or inside of something.

    Those have two dimensions at least and are real numbers or bytes. Whole numbers are facts about columns or pictures
    (token types, grids, sizes), which some models get in every pass.
    """
    if isinstance(given, Tensor):
        return given.ndim > 1 and given.numel() > 0 and (given.is_floating_point() or given.dtype == torch.uint8)
    if isinstance(given, Mapping):
        return any(map(pictures, given.values()))
    if isinstance(given, list | tuple):
        return any(map(pictures, given))
    return given is not None and not isinstance(given, str | bool | int | float)


def refusal(
    arguments: Mapping[str, Any], mask: Any, cache: Any, anatomy: Anatomy, *, step: bool, starts: bool, compiled: bool
) -> str | None:
    """What keeps pruning from following this pass, and what to do instead; None if it can."""
    if arguments.get("cu_seq_lens_q") is not None:
        return PACKED
    if not step and (arguments.get("is_causal") is False or not getattr(anatomy.text, "is_causal", True)):
        return BOTH_WAYS
    if caches.room(cache) and (reason := _refusal_of_room(anatomy)):
        return reason
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        got = f"{mask.ndim}-D mask that is not causal" if isinstance(mask, Tensor) else type(mask).__name__
        return f"it needs a 2-D attention mask (prompts x columns) or none, got a {got}; pass the tokenizer's mask"
    if starts and compiled:
        return (
            "a prefill inside torch.compile would be compiled for every prompt; take torch.compile off the model and "
            "pass cache_implementation='static' to generate, which compiles the decode steps only"
        )
    return None


def _refusal_of_room(anatomy: Anatomy) -> str | None:
    """What keeps pruning from following a static cache, or None."""
    if not anatomy.uniform:
        kinds = ", ".join(sorted({*anatomy.kinds} - {FULL}))
        return (
            f"a static cache for blocks of {kinds} keeps other columns than those that are left; leave "
            "cache_implementation at its default"
        )
    if "flash" in anatomy.text._attn_implementation:
        return (
            "flash attention reads the empty columns of a static cache too, with or without pruning; use sdpa, or "
            "leave cache_implementation at its default"
        )
    return None


def columns_of(mask: Any, past: int, new: int) -> Any:
    """The 2-D mask that a 4-D causal one was made of; anything else as it is.

    Static caches come with a ready-made mask, some by attention type. Its last row sees all columns but padding.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", mask)
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1:
        return mask
    if new > 1 and not causal(mask, past, new):  # one row cannot be anything else than causal
        return mask
    return as_bool(mask)[:, 0, -1]


def causal(mask: Tensor, past: int, new: int) -> Bool[Tensor, ""]:
    """Whether a 4-D mask hides padding and what comes later from each of `new` columns, and nothing else."""
    allowed = as_bool(mask)
    visible = allowed[:, 0, -1]
    every = torch.arange(visible.shape[1], device=visible.device)
    follows = every <= every[past : past + new, None]
    real = visible[:, past : past + new, None]  # what padded rows see does not matter
    fine = ((allowed & real[:, None]) == (visible[:, None] & follows & real)[:, None]).all()
    if mask.dtype != torch.bool:
        fine &= ((mask == 0) | (mask < -1000)).all()  # what is added to the logits only hides
    return fine


def as_bool(mask: Tensor) -> Bool[Tensor, "*shape"]:
    """Where a mask lets columns see each other, be it one of truth values or of what is added to the logits."""
    return mask if mask.dtype == torch.bool else mask >= 0
