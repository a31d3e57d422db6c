"""A tiny random model of a family, with pictures for it: what parts are tested with, without a download.

Nothing here imports torch or transformers before a model is built: an adapter that names its tiny model stays quick to
list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPVisionConfig

DEPTH = 6
"""Decoder blocks."""

VOCAB = 128
"""Token ids in all."""

IMAGE = 5
"""The token id of a picture's placeholder."""

VIDEO = 6
"""That of a video's."""

PAD = 0
"""That of padding."""


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a family, and what a picture is to it.

    Attributes:
        name: shows in the names of tests.
        build: makes the model with random weights; at least four decoder blocks.
        media: from `"image"` or `"video"` and a seed: how many placeholder tokens one such has, and its model inputs.
            Those of a batch are joined along axis 0, in the order of its prompts. Where marks of the processor stand
            between placeholders: all of these tokens, ids below 10, instead of their number.
        video: whether it takes videos.
        types: the model input that says of each column what it is, if it takes one.
        kinds: what that says of text, pictures and videos.
    """

    name: str
    build: Callable[[], Any]
    media: Callable[[str, int], tuple[int | list[int], dict[str, Tensor]]]
    video: bool = False
    types: str | None = None
    kinds: tuple[int, int, int] = (0, 1, 2)


def text_config(**more: Any) -> dict[str, Any]:
    """A decoder of `DEPTH` blocks."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**sizes, **more}


def vision_config() -> CLIPVisionConfig:
    """CLIP of three blocks: 16 patches of a picture of 32 x 32, and a CLS row."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )


def normal(seed: int, *shape: int) -> Tensor:
    """Random numbers that depend on the seed alone."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
