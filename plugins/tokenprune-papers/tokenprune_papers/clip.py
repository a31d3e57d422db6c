"""The other half of the CLIP that a vision tower comes from: how near its patches are to a text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune import Seen
from tokenprune.errors import ScorerError


@lru_cache(maxsize=2)
def load(name: str) -> tuple[Any, Any]:
    """A CLIP and its tokenizer. Raises ScorerError if they cannot be had."""
    from transformers import AutoTokenizer, CLIPModel

    try:
        return CLIPModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ScorerError(
            f"the CLIP {name!r} cannot be loaded: {reason}. Download it, give its folder (scorer.clip=PATH), or use "
            "relevance: text, which needs no CLIP"
        ) from error


@torch.no_grad()
def patch_text_cosines(name: str, seen: Seen) -> Float[Tensor, "n"]:
    """Cosine of each token's patch, projected as CLIP does, to the question; the mean over pieces of a long one.

    Raises:
        PromptError: pruned without a processor.
        ScorerError: the CLIP cannot be loaded, or is not the one of this tower.
    """
    text = seen.text
    clip, tokenizer = load(name)
    clip = clip.to(seen.states.device)
    patches = seen.vision.features()
    width = clip.config.vision_config.hidden_size
    if patches.shape[1] != width:
        raise ScorerError(
            f"the CLIP {name!r} has patches of width {width}, and this vision tower has {patches.shape[1]}: give the "
            "CLIP that the tower comes from, or use relevance: text"
        )
    image = clip.visual_projection(clip.vision_model.post_layernorm(patches.to(clip.dtype)))
    ids = tokenizer(text).input_ids
    room = clip.config.text_config.max_position_embeddings
    pieces = torch.zeros(-(-len(ids) // room), room, dtype=torch.long, device=image.device)
    mask = torch.zeros_like(pieces)
    pieces.view(-1)[: len(ids)] = torch.tensor(ids, device=image.device)
    mask.view(-1)[: len(ids)] = 1
    words = clip.get_text_features(input_ids=pieces, attention_mask=mask).pooler_output
    unit = torch.nn.functional.normalize
    return (unit(image.float(), dim=-1) @ unit(words.float(), dim=-1).T).mean(-1)
