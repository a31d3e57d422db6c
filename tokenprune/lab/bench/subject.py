"""What `tokenprune bench` measures on: a model with a picture, or random weights of a published shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import conditions, random_models
from ..loading import Loaded
from ..media import read_image
from ..pico import scenes


@dataclass(frozen=True)
class Subject:
    """A model and one prompt for it.

    Attributes:
        model: a transformers model.
        inputs: of the prompt.
        processor: None where there is none, with random weights.
        ecl: the Entropy Collapse Layer, where it is said rather than looked up or measured.
    """

    model: Any
    inputs: Mapping[str, Any]
    processor: Any = None
    ecl: int | None = None

    def settings(self) -> dict[str, Any]:
        """What times depend on: how the model is loaded, and the machine."""
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config.get_text_config()._attn_implementation,
            **conditions.machine(self.model.device),
        }


def of_a_picture(loaded: Loaded, image: Path | None, question: str, ecl: int | None = None) -> Subject:
    """A question about a picture; without one, about a scene that pico draws."""
    picture = read_image(image) if image is not None else next(scenes.held_out(0)).picture
    return Subject(loaded.model, loaded.inputs(question, [picture]), loaded.processor, ecl)


def at_random(
    shape: str,
    scale: str,
    text: int,
    ecl: int | None = None,
    *,
    attention: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Subject:
    """Random weights of a published shape, and a prompt of `text` text tokens and a picture of noise.

    Args:
        shape: one of `random_models.NAMES`.
        scale: share of its width and depth, such as `1/8`.
        text: text tokens.
        ecl: the Entropy Collapse Layer; by default the shipped one of the shape, scaled with the depth.
        attention: implementation of transformers.
        dtype: `auto` is float32 on a CPU and bfloat16 elsewhere.
        device: the GPU if there is one.

    Raises:
        UnknownNameError: there is no such shape.
        LayerError: no Entropy Collapse Layer is shipped for it, and none is given.
        TokenpruneError: the scale is none, or such a model cannot be built.
    """
    share = random_models.check(shape, scale)
    ecl = ecl if ecl is not None else random_models.collapse_layer(shape, share)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    automatic = torch.float32 if where == "cpu" else torch.bfloat16
    kind = automatic if dtype == "auto" else getattr(torch, dtype)
    model = random_models.build(shape, share, kind, where, attention)
    return Subject(model, random_models.prompt(shape, model, text), ecl=ecl)
