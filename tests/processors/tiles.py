"""Pictures that processors cut into tiles, and videos, from files into tiny models that are pruned.

Video processors need torchvision: `test_processors.py` runs this file in a process of its own that has it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dots import dotted
from families import model
from PIL import Image
from real_processors import QUESTION, RECIPE, loaded, template, tokenizer
from transformers import (
    AyaVisionProcessor,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    Llama4ImageProcessor,
    Llama4Processor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

import tokenprune
from tokenprune.families import cut
from tokenprune.lab.loading import Loaded
from tokenprune.lab.media import read_image, read_video
from tokenprune.parts.adapter import Given
from tokenprune.registry import registry
from tokenprune.show import overlay

SQUARE = {"size": {"height": 32, "width": 32}}
CUT = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
TAGS = {f"<row_{row}_col_{column}>": 40 + 3 * row + column for row in (1, 2, 3) for column in (1, 2, 3)}
MARKS = {"<fake_token_around_image>": 3, "<global-img>": 4, "\n": 8, "\n\n": 7, **TAGS}

processing_smolvlm.num2words = str  # how many frames a video has is said in words, by a package that need not be here


def named(words: PreTrainedTokenizerFast, **tokens: str) -> PreTrainedTokenizerFast:
    """The tokenizer, which also knows tokens by names."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, **special, extra_special_tokens=tokens)


def onevision() -> Any:
    parts = (
        LlavaOnevisionImageProcessor(**SQUARE, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]),
        tokenizer("<image>", "<video>"),
        LlavaOnevisionVideoProcessor(**SQUARE),
    )
    more = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_3"}
    return LlavaOnevisionProcessor(*parts, **more, chat_template=template("<image>", "<video>"))


def internvl() -> Any:
    words = tokenizer("<IMG_CONTEXT>", "<video>", **{"<img>": 3, "</img>": 4, "Frame": 40})
    tokens = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    parts = (
        GotOcr2ImageProcessor(**SQUARE, crop_to_patches=True, max_patches=6),
        named(words, **tokens, video_token="<video>"),
        InternVLVideoProcessor(**SQUARE),
    )
    return InternVLProcessor(*parts, image_seq_length=4, chat_template=template("<IMG_CONTEXT>", "<video>"))


def smolvlm() -> Any:
    parts = SmolVLMImageProcessor(**CUT), tokenizer("<image>", "<video>", **MARKS), SmolVLMVideoProcessor(**CUT)
    return SmolVLMProcessor(*parts, image_seq_len=4, chat_template=template("<image>", "<video>"))


def idefics3() -> Any:
    parts = Idefics3ImageProcessor(**CUT), tokenizer("<image>", "<video>", **MARKS)
    return Idefics3Processor(*parts, image_seq_len=4, chat_template=template("<image>", "<video>"))


def aya_vision() -> Any:
    marks = {"<|START_OF_IMG|>": 3, "<|END_OF_IMG|>": 4, "TILE_GLOBAL": 7, "<image>": 8}
    words = tokenizer("<|IMG_PATCH|>", "<video>", **marks, **{f"TILE_{number}": 40 + number for number in range(1, 9)})
    image = GotOcr2ImageProcessor(**SQUARE, crop_to_patches=True, max_patches=6)
    more = {"patch_size": 8, "img_size": 32, "downsample_factor": 2, "chat_template": template("<image>", "<video>")}
    return AyaVisionProcessor(image, words, **more)


def cohere2_vision() -> Any:
    marks = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "img_line_break_token": "<|BREAK|>"}
    words = tokenizer("<image>", "<video>", **dict(zip(marks.values(), (3, 4, 7), strict=True)))
    image = Cohere2VisionImageProcessor(**SQUARE, max_patches=6, patch_size=2)
    text = template("<image>", "<video>")
    return Cohere2VisionProcessor(image, named(words, **marks, image_token="<image>"), chat_template=text)


def llama4() -> Any:
    marks = ["<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>"]
    words = tokenizer("<|patch|>", "<video>", **dict(zip(marks, (3, 4, 7, 8, 40), strict=True)))
    more = {"patch_size": 8, "pixel_shuffle_ratio": 0.5, "chat_template": template("<|image|>", "<video>")}
    return Llama4Processor(Llama4ImageProcessor(**SQUARE, max_patches=6), words, **more)


def mistral3() -> Any:
    image = PixtralImageProcessor(size={"longest_edge": 96}, patch_size={"height": 8, "width": 8})
    words = tokenizer("[IMG]", "<video>", **{"[IMG_BREAK]": 3, "[IMG_END]": 4})
    more = {"patch_size": 4, "spatial_merge_size": 2, "chat_template": template("[IMG]", "<video>")}
    return PixtralProcessor(image, words, **more)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llava_onevision": onevision,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "llama4": llama4,
    "mistral3": mistral3,
}
VIDEOS = ("llava_onevision", "internvl", "smolvlm")
PICTURES = [(128, 64), (40, 80), (31, 30), (130, 100), (50, 140)]


@cache
def unmixed(family: str) -> Any:
    """The tiny model with a vision tower whose patches do not look at each other."""
    lm = copy.deepcopy(model(family))
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if re.search(r"vision.*\.(out_proj|o_proj|projection_layer)\.", name):
                weight.zero_()
    return lm


@cache
def ready(family: str, folder: Path) -> Loaded:
    return loaded(folder / family, unmixed(family), FAMILIES[family]())


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def user(family: str, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return ready(family, tmp_path_factory.getbasetemp())


def asked(
    user: Loaded, pictures: Sequence[Image.Image], videos: Sequence[np.ndarray] = (), talks: Any = None
) -> dict[str, torch.Tensor]:
    """Inputs of a question about these, or of conversations, pixels in the dtype of the model: some are bfloat16."""
    given = user.inputs(QUESTION, pictures, videos) if talks is None else user.batch(talks, pictures, videos)
    return {name: value.to(user.model.dtype) if value.is_floating_point() else value for name, value in given.items()}


@pytest.mark.parametrize(
    ("family", "kind"), [*((family, "picture") for family in FAMILIES), *((family, "video") for family in VIDEOS)]
)
def test_from_files_to_a_pruned_answer(family: str, user: Loaded, kind: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    frames = [Image.fromarray(draw.integers(0, 255, (50, 90, 3), np.uint8)) for _ in range(5)]
    frames[0].save(tmp_path / "picture.png")
    frames[0].save(tmp_path / "video.gif", save_all=True, append_images=frames[1:])
    pictures = [read_image(tmp_path / "picture.png")] if kind == "picture" else []
    videos = [read_video(tmp_path / "video.gif", frames=4)] if kind == "video" else []
    given, lm = asked(user, pictures, videos), user.model
    plain = lm.generate(**given, max_new_tokens=4, do_sample=False)
    with tokenprune.prune(lm, RECIPE) as pruning:
        pruned = lm.generate(**given, max_new_tokens=4, do_sample=False)
    assert pruned.shape == plain.shape == (1, given["input_ids"].shape[1] + 4)
    state = pruning.state
    assert state is not None
    assert int(state.visual[0, state.views[2].index[0]].sum()) == 5
    for shown in pictures or ([videos[0]] if family == "llava_onevision" else list(videos[0])):
        assert pruning.overlay(shown, given, processor=user.processor).height == 50
    assert torch.equal(lm.generate(**given, max_new_tokens=4, do_sample=False), plain)


def boxes(user: Loaded, given: Any, *sizes: tuple[int, int] | None) -> list[torch.Tensor]:
    config = user.model.config
    found = registry().adapter(config).boxes(Given(config, given, user.processor, sizes))
    assert found is not None
    return list(found[config.image_token_id])


@torch.no_grad()
def features(user: Loaded, given: dict[str, Any]) -> torch.Tensor:
    """A row for each token of the pictures."""
    names = ("pixel_values", "image_sizes", "pixel_attention_mask", "batch_num_images")
    output = user.model.get_image_features(**{name: given[name] for name in names if name in given})
    found = output.last_hidden_state if user.model.config.model_type == "llama4" else output.pooler_output
    return torch.cat([each.flatten(0, -2) for each in found])


def dots_are_found(user: Loaded, size: tuple[int, int]) -> int:
    """A dot in the middle of a token's box changes this token most, of those in its panel. How many were tried."""
    given = asked(user, [dotted(size, None)])
    (places,) = boxes(user, given, size[::-1])
    black = features(user, given)
    assert len(places) == len(black) == int((given["input_ids"] == user.model.config.image_token_id).sum())
    middle = (places[:, 1:3] + places[:, 3:5]) / 2
    shown = ((middle > 0) & (middle < 1)).all(1).nonzero()[:, 0].tolist()
    for token in shown[:: max(1, len(shown) // 5)]:
        x, y = middle[token].tolist()
        bright = features(user, asked(user, [dotted(size, (x, y), 3)]))
        panel = (places[:, 0] == places[token, 0]).nonzero()[:, 0]
        assert int(panel[(bright - black).norm(dim=-1)[panel].argmax()]) == token
    return len(shown)


@pytest.mark.parametrize("size", PICTURES, ids=str)
def test_a_dot_in_the_middle_of_a_box_is_in_that_token(family: str, user: Loaded, size: tuple[int, int]) -> None:
    assert dots_are_found(user, size) >= 4


@pytest.mark.parametrize("family", ["smolvlm", "llama4", "cohere2_vision"])
def test_turned_tiles_would_be_found(family: str, user: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = cut.Layout
    monkeypatch.setattr(
        cut, "_boxes", lambda tiles, side, at, own=cut._boxes: own(tiles, side, at and layout(at.columns, at.rows))
    )
    with pytest.raises(AssertionError):
        dots_are_found(user, (128, 64))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llava_onevision"])
def test_each_picture_of_a_prompt_has_its_own_tiles(family: str, user: Loaded) -> None:
    """Sizes are known of the second picture only: it lies where it would lie alone."""
    sizes = [(31, 30), (130, 100), (128, 64)]
    pictures = [dotted(size, None) for size in sizes]
    given = asked(user, pictures)
    found = boxes(user, given, None, sizes[1][::-1])
    pairs = zip(pictures, sizes, strict=True)
    alone = [boxes(user, asked(user, [picture]), size[::-1])[0] for picture, size in pairs]
    assert [len(each) for each in found] == [len(each) for each in alone]
    assert torch.equal(found[1].nan_to_num(-1), alone[1].nan_to_num(-1))


def test_a_batch_of_prompts_with_none_one_and_two_pictures(family: str, user: Loaded) -> None:
    pictures = [dotted(size, None) for size in PICTURES[:3]]
    talks = [
        [{"role": "user", "content": [*[{"type": "image"}] * count, {"type": "text", "text": QUESTION}]}]
        for count in (1, 0, 2)
    ]
    given, config = asked(user, pictures, talks=talks), user.model.config
    ids, adapter = given["input_ids"], registry().adapter(user.model.config)
    visual = adapter.visual(config, ids)
    assert int(visual.sum()) == len(features(user, given))
    for row, count in enumerate((1, 0, 2)):
        found = overlay.placed(adapter, config, ids, visual, given, row, user.processor)
        assert len(found) == count
        assert sum(len(each.columns) for each in found) == int(visual[row].sum())
    with tokenprune.prune(user.model, RECIPE) as pruning:
        user.model.generate(**given, max_new_tokens=2, do_sample=False)
    assert pruning.state is not None
    assert pruning.state.counts == tuple(visual.sum(1).tolist())


def test_an_overlay_of_any_picture_knows_its_size(family: str, user: Loaded) -> None:
    pictures = [dotted(size, None) for size in PICTURES[:2]]
    given = asked(user, pictures)
    with tokenprune.prune(user.model, RECIPE) as pruning, torch.no_grad():
        user.model(**given)
    for number, picture in enumerate(pictures):
        drawn = np.asarray(pruning.overlay(picture, given, processor=user.processor, picture=number))
        assert not (drawn == overlay.UNSEEN).all(-1).any()  # every pixel is in some token's box
