"""Models of published shapes with random weights, and a prompt for each: they cost what trained ones cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..ecl import shipped
from ..errors import LayerError, TokenpruneError, UnknownNameError
from ..plan.cost import SHAPES, DecoderSize
from .loading import encode

IMAGE, VIDEO = 32000, 32001  # token ids of placeholders; all text is below
NAMES = tuple(SHAPES)

_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_LLAMA = {"model_type": "llama", "vocab_size": 32064}


def _clip(size: int) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **_CLIP, "image_size": size, "patch_size": 14}


def _pictures(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


@dataclass(frozen=True)
class Published:
    """What a config holds beside the decoder's sizes, and one picture or video as model inputs."""

    config: Mapping[str, Any]
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    media: Callable[[torch.Generator], dict[str, Tensor]]
    placeholder: int = IMAGE


PUBLISHED = {
    "llava-1.5-7b": Published(
        {"model_type": "llava", "image_token_index": IMAGE},
        _clip(336),
        _LLAMA,
        lambda generator: {"pixel_values": _pictures(generator, 1, 3, 336, 336)},
    ),
    "llava-next-7b": Published(
        {
            "model_type": "llava_next",
            "image_token_index": IMAGE,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        _clip(336),
        _LLAMA,
        lambda generator: {
            "pixel_values": _pictures(generator, 1, 5, 3, 336, 336),
            "image_sizes": torch.tensor([[672, 672]]),
        },
    ),
    "video-llava-7b": Published(
        {"model_type": "video_llava", "image_token_index": IMAGE, "video_token_index": VIDEO},
        _clip(224),
        _LLAMA,
        lambda generator: {"pixel_values_videos": _pictures(generator, 1, 8, 3, 224, 224)},
        placeholder=VIDEO,
    ),
    "qwen2.5-vl-7b": Published(
        {"model_type": "qwen2_5_vl", "image_token_id": IMAGE, "video_token_id": VIDEO},
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
        },
        {
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
        },
        lambda generator: {
            "pixel_values": _pictures(generator, 48 * 48, 3 * 2 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, 48, 48]]),
        },
    ),
}


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
    if name not in PUBLISHED:
        raise UnknownNameError("shape", name, NAMES)
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

    made, sizes = PUBLISHED[name], scaled(SHAPES[name], scale)
    vision = dict(made.vision)
    heads = "num_attention_heads" if "num_attention_heads" in vision else "num_heads"
    depth = "num_hidden_layers" if "num_hidden_layers" in vision else "depth"
    size = vision["hidden_size"] // vision[heads]
    vision[heads] = max(1, round(vision[heads] * scale))
    vision["hidden_size"] = size * vision[heads]
    vision["intermediate_size"] = max(1, round(vision["intermediate_size"] * scale))
    vision[depth] = max(2, round(vision[depth] * scale))
    if "spatial_merge_size" in vision:  # every fourth block sees the whole picture, which becomes as wide as the text
        every = max(1, math.ceil(vision[depth] / 4))
        vision |= {
            "fullatt_block_indexes": list(range(every - 1, vision[depth], every)),
            "out_hidden_size": sizes.width,
        }
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
    made, generator = PUBLISHED[name], torch.Generator().manual_seed(0)
    media = {key: _as(value, model) for key, value in (media or made.media(generator)).items()}
    with torch.no_grad():
        (encoded,) = encode(model, media)["mm_encoder_outputs"].values()
    visual = sum(len(rows) for rows in encoded.pooler_output)
    words = torch.randint(10, 30000, (text,), generator=generator)
    ids = torch.cat([words[: text // 2], torch.full((visual,), made.placeholder), words[text // 2 :]])[None]
    ids = ids.to(model.device)
    more = {"mm_token_type_ids": (ids == made.placeholder).int()} if "image_grid_thw" in media else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media, **more}


def _as(value: Tensor, model: Any) -> Tensor:
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def collapse_layer(name: str, scale: Fraction) -> int:
    """The shape's shipped Entropy Collapse Layer at this scale: that of random weights would mean nothing.

    Raises LayerError if none is shipped.
    """

    layer = shipped(name, SHAPES[name].depth)
    if layer is None:
        raise LayerError(f"no Entropy Collapse Layer is shipped for {name}: pass --ecl LAYER")
    return max(1, round(layer * scale))
