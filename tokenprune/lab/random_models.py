"""Models of published shapes with random weights, and a prompt for each: they cost what trained ones cost."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..ecl import shipped
from ..errors import LayerError, TokenpruneError, UnknownNameError
from ..parts.published import Published
from ..plan.cost import DecoderSize
from ..plan.shapes import PUBLISHED, geometry, published, shapes
from .loading import encode

NAMES = tuple(PUBLISHED)
"""Those of the families that are built in."""


def scaled(sizes: DecoderSize, scale: Fraction) -> DecoderSize:
    """This share of the width and of the depth; at least four blocks; heads keep their size."""
    heads = max(1, round(sizes.heads * scale))
    most = max(1, round(sizes.kv_heads * scale))
    return DecoderSize(
        depth=max(4, round(sizes.depth * scale)),
        width=heads * sizes.head_size,
        ffn=max(1, round(sizes.ffn * scale)),
        heads=heads,
        kv_heads=max(n for n in range(1, most + 1) if heads % n == 0),
        head_size=sizes.head_size,
        family=sizes.family,
    )


def check(name: str, scale: str | float | Fraction) -> Fraction:
    """The scale as a fraction. Raises UnknownNameError for the name, TokenpruneError for a scale outside (0, 1]."""
    if name not in published():
        if name not in shapes():
            raise UnknownNameError("shape", name, published())
        alone = f"its sizes alone are known (`tokenprune explain --shape {name}`)"
        listed = f"{alone}; {', '.join(published())} can be built"
        raise UnknownNameError("shape with random weights", name, published(), listed)
    try:
        share = Fraction(scale)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise TokenpruneError(f"a scale is a fraction of width and depth above 0 and up to 1, such as 1/8, got {scale}")
    return share


def config(name: str, scale: Fraction = Fraction(1)) -> Any:
    """The transformers config of a published shape, or of this share of its width and depth, the tower's too."""
    from transformers import AutoConfig

    made, sizes = published()[name], scaled(geometry(name), scale)
    vision = dict(made.vision)
    heads = "num_attention_heads" if "num_attention_heads" in vision else "num_heads"
    depth = "num_hidden_layers" if "num_hidden_layers" in vision else "depth"
    size = vision["hidden_size"] // vision[heads]
    vision[heads] = max(1, round(vision[heads] * scale))
    vision["hidden_size"] = size * vision[heads]
    vision["intermediate_size"] = max(1, round(vision["intermediate_size"] * scale))
    vision[depth] = max(2, round(vision[depth] * scale))
    vision |= made.follows(vision[depth], sizes.width)
    text = {
        **made.text,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": 32768,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(**made.config, vision_config=vision, text_config=text)


def build(
    name: str, scale: Fraction, dtype: torch.dtype, device: torch.device | str, attention: str | None = None
) -> Any:
    """The model, with random weights that depend on nothing but the seed 0."""
    from transformers import AutoModelForImageTextToText

    options = {"attn_implementation": attention} if attention else {}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config(name, scale), dtype=dtype, **options).eval()


def prompt(name: str, model: Any, text: int, media: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """One picture or video (`media`, or random) amid random text, half of it before and half after."""
    made, generator = published()[name], torch.Generator().manual_seed(0)
    media = {key: _as(value, model) for key, value in (media or _media(made, generator)).items()}
    with torch.no_grad():
        (encoded,) = encode(model, media)["mm_encoder_outputs"].values()
    visual = sum(len(rows) for rows in encoded.pooler_output)
    words = torch.randint(10, 30000, (text,), generator=generator)
    ids = torch.cat([words[: text // 2], torch.full((visual,), made.placeholder), words[text // 2 :]])[None]
    ids = ids.to(model.device)
    marks = {key: mark * (ids == made.placeholder).int() for key, mark in made.marks.items()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media, **marks}


def _media(made: Published, generator: torch.Generator) -> dict[str, Tensor]:
    """One random picture or video as model inputs."""
    pixels = {key: torch.randn(*shape, generator=generator) for key, shape in made.pixels.items()}
    return {**pixels, **{key: torch.tensor(value) for key, value in made.numbers.items()}}


def _as(value: Tensor, model: Any) -> Tensor:
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def collapse_layer(name: str, scale: Fraction) -> int:
    """The shape's shipped Entropy Collapse Layer at this scale: that of random weights would mean nothing.

    Raises LayerError if none is shipped.
    """
    layer = shipped(name, geometry(name).depth)
    if layer is None:
        raise LayerError(f"no Entropy Collapse Layer is shipped for {name}: pass --ecl LAYER")
    return max(1, round(layer * scale))
