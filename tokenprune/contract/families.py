"""Tiny random models of the families, and prompts for them: pictures and text in any arrangement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

FAMILIES = ("llava", "llava_next", "video_llava", "qwen2_5_vl")
# transformers renamed it on the way from 5.19 to 5.23
VIDEO_LLAVA_PICTURES = next(
    name
    for name in ("pixel_values", "pixel_values_images")
    if name in inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
)
DEPTH, VOCAB, IMAGE, VIDEO, PAD = 6, 128, 5, 6, 0

# A prompt is a seed and its segments: a number of text tokens, "image" or "video".
Prompt = tuple[int, tuple[int | str, ...]]

ONE: list[Prompt] = [(1, (3, "image", 9))]
PADDED: list[Prompt] = [(1, (3, "image", 9)), (2, (2, "image", 4))]
RAGGED: list[Prompt] = [(3, (2, "image", 3, "image", 5)), (2, (7,)), (1, (4, "image", 9))]
MIXED: list[Prompt] = [(4, (2, "image", 3, "video", 5)), (1, (4, "image", 9)), (5, (2, "video", 3))]
BATCHES = {"one": ONE, "padded": PADDED, "ragged": RAGGED}


def vision_config() -> CLIPVisionConfig:
    """A tower of three blocks; 16 patches and a CLS row."""
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )


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


def build(family: str) -> Any:
    """The model as transformers makes it, weights random."""
    if family == "llava":
        config = LlavaConfig(
            vision_config=vision_config(), text_config=LlamaConfig(**text_config()), image_token_index=IMAGE
        )
        return LlavaForConditionalGeneration(config)
    if family == "llava_next":
        config = LlavaNextConfig(
            vision_config=vision_config(),
            text_config=LlamaConfig(**text_config(num_key_value_heads=4)),
            image_token_index=IMAGE,
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        )
        return LlavaNextForConditionalGeneration(config)
    if family == "video_llava":
        config = VideoLlavaConfig(
            vision_config=vision_config(),
            text_config=LlamaConfig(**text_config()),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
        return VideoLlavaForConditionalGeneration(config)
    config = Qwen2_5_VLConfig(
        text_config=text_config(
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@dataclass(frozen=True)
class Family:
    """A family for the contract to run parts in.

    Attributes:
        name: shows in the names of tests.
        build: makes a tiny model with random weights, at least four decoder blocks deep.
        inputs: model inputs of a left-padded batch of prompts, with `input_ids` and `attention_mask`.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[[Sequence[Prompt]], dict[str, Tensor]]

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        """One model per attention and dtype, with the same weights."""
        return _model(self, attention, dtype)

    def given(self, prompts: Sequence[Prompt], dtype: torch.dtype = torch.float32) -> Mapping[str, Tensor]:
        """`inputs` with pixels of a dtype."""
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.inputs(prompts).items()}


def shipped() -> list[Family]:
    """The families that tokenprune supports by itself."""
    return list(_shipped().values())


@cache
def _shipped() -> dict[str, Family]:
    return {name: Family(name, partial(build, name), partial(inputs, name)) for name in FAMILIES}


def model(family: str, attention: str = "sdpa") -> Any:
    """One model per family and attention, with the same weights."""
    return _shipped()[family].model(attention)


def forget() -> None:
    """Make every model anew when it is next asked for: somebody changed weights."""
    _model.cache_clear()


@cache
def _model(family: Family, attention: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    made = family.build().eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():  # larger weights: answers that vary
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(4)
    made.to(dtype).set_attn_implementation(attention)
    made.generation_config.eos_token_id = None  # never stops early: lengths stay comparable
    made.generation_config.pad_token_id = PAD
    return made


def _rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class _Media:
    """Pictures and videos of a batch in prompt order, in the form of one family."""

    family: str
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)

    def add(self, kind: str, seed: int) -> int:
        """Add one; returns its number of placeholder tokens."""
        if self.family == "qwen2_5_vl":
            grid = (1, 8, 8 + 4 * (seed % 2)) if kind == "image" else (2, 4, 8)
            count = grid[0] * grid[1] * grid[2]
            (self.images if kind == "image" else self.videos).append((_rand(seed, count, 3 * 2 * 4 * 4), grid))
            return count // 4
        if kind == "video":
            self.videos.append(_rand(seed, 2, 3, 32, 32))
            return 2 * 17
        if self.family == "llava_next":
            size = [(40, 60), (64, 30), (64, 64)][seed % 3]
            self.images.append((size, seed))
            with torch.no_grad():
                probe = _next_inputs([self.images[-1]])
                return len(model("llava_next").model.get_image_features(**probe).pooler_output[0])
        self.images.append(_rand(seed, 3, 32, 32))
        return 16

    def inputs(self) -> dict[str, Tensor]:
        if self.family == "qwen2_5_vl":
            found: dict[str, Tensor] = {}
            for items, values, grids in (
                (self.images, "pixel_values", "image_grid_thw"),
                (self.videos, "pixel_values_videos", "video_grid_thw"),
            ):
                if items:
                    found[values] = torch.cat([item[0] for item in items])
                    found[grids] = torch.tensor([item[1] for item in items])
            return found
        if self.family == "llava_next":
            return _next_inputs(self.images) if self.images else {}
        pictures = VIDEO_LLAVA_PICTURES if self.family == "video_llava" else "pixel_values"
        found = {pictures: torch.stack(self.images)} if self.images else {}
        return {**found, **({"pixel_values_videos": torch.stack(self.videos)} if self.videos else {})}


def _next_inputs(images: Sequence[tuple[tuple[int, int], int]]) -> dict[str, Tensor]:
    tiles = {(40, 60): 3, (64, 30): 3, (64, 64): 5}
    pixels = torch.zeros(len(images), 5, 3, 32, 32)
    for i, (size, seed) in enumerate(images):
        pixels[i, : tiles[size]] = _rand(seed, tiles[size], 3, 32, 32)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([size for size, _ in images])}


def inputs(family: str, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch; the attention mask is always there, as from a processor."""
    media, rows = _Media(family), []
    for seed, segments in prompts:
        generator = torch.Generator().manual_seed(seed)
        row: list[int] = []
        for i, segment in enumerate(segments):
            if isinstance(segment, int):
                row += torch.randint(10, VOCAB, (segment,), generator=generator).tolist()
            else:
                row += [IMAGE if segment == "image" else VIDEO] * media.add(segment, 100 * seed + i)
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    found = {"input_ids": ids, "attention_mask": mask, **media.inputs()}
    if family == "qwen2_5_vl":
        found["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return found


def has_video(family: str) -> bool:
    return family in ("video_llava", "qwen2_5_vl")


@torch.no_grad()
def answer(family: str, attention: str, prompts: Sequence[Prompt], steps: int = 6, **more: Any) -> Any:
    """Greedy generation with the logits of every step: `.sequences`, `.logits` (tuple of b x vocab)."""
    given = inputs(family, prompts)
    return model(family, attention).generate(
        **given,
        max_new_tokens=steps,
        **{"do_sample": False, "return_dict_in_generate": True, "output_logits": True, **more},
    )


def logits(answered: Any) -> Tensor:
    """b x steps x vocab."""
    return torch.stack(answered.logits, dim=1)
