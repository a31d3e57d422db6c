"""Pictures and videos from files, through the stock processors, into tiny models that are pruned.

Video processors need torchvision: `test_processors.py` runs this file in a process of its own that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import dots
import numpy as np
import pytest
import torch
from dots import check, dotted, panels
from PIL import Image
from processed import unmixed
from real_processors import QUESTION, RECIPE, loaded, template, tokenizer
from transformers import (
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

import tokenprune
from tokenprune.families import grids
from tokenprune.lab.loading import Loaded
from tokenprune.lab.media import read_image, read_video
from tokenprune.registry import registry
from tokenprune.show import overlay

PATCHES = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "patch_size": 4}
VIDEOS = {"size": {"shortest_edge": 256, "longest_edge": 4096 * 8}, "patch_size": 4}
PAIRS = {"merge_size": 2, "temporal_patch_size": 2}
SQUARE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def qwen(processor: Any, videos: Any) -> Any:
    words = tokenizer("<|image_pad|>", "<|video_pad|>", **{"<|vision_start|>": 3, "<|vision_end|>": 4})
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    parts = Qwen2VLImageProcessor(**PATCHES, **PAIRS), videos(**VIDEOS, **PAIRS)
    return processor(parts[0], words, parts[1], chat_template=template(image, video))


def glm() -> Any:
    more = {"<|begin_of_image|>": 3, "<|end_of_image|>": 4, "<|begin_of_video|>": 7, "<|end_of_video|>": 8}
    words = tokenizer("<|image|>", "<|video|>", **more)
    image, video = (f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>" for kind in ("image", "video"))
    parts = Glm46VImageProcessor(**PATCHES, **PAIRS), Glm46VVideoProcessor(**VIDEOS, **PAIRS)
    return Glm46VProcessor(parts[0], words, parts[1], chat_template=template(image, video))


def video_llama_3() -> Any:
    words = tokenizer("<|image_pad|>", "<|video_pad|>")
    parts = VideoLlama3ImageProcessor(**PATCHES, merge_size=1), VideoLlama3VideoProcessor(**VIDEOS, merge_size=2)
    return VideoLlama3Processor(parts[0], words, parts[1], chat_template=template("<|image_pad|>", "<|video_pad|>"))


def video_llava() -> Any:
    parts = VideoLlavaImageProcessor(**SQUARE), VideoLlavaVideoProcessor(**SQUARE), tokenizer("<image>", "<video>")
    more = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return VideoLlavaProcessor(*parts, **more, chat_template=template("<image>", "<video>"))


FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": lambda: qwen(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": lambda: qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor),
    "glm46v": glm,
    "video_llama_3": video_llama_3,
    "video_llava": video_llava,
}
DOTS = [(0.3, 0.55), (0.55, 0.78), (0.7, 0.32)]  # far from the edges of every grid here
FRAMES = [None, (0.3, 0.55), (0.65, 0.42), (0.55, 0.78)]
EACH = {"video_llava": 1, "video_llama_3": 1}  # frames of a video that share tokens; two elsewhere


@cache
def ready(family: str, folder: Path) -> Loaded:
    return loaded(folder / family, unmixed(family), FAMILIES[family]())


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def user(family: str, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return ready(family, tmp_path_factory.getbasetemp())


def files(folder: Path, family: str) -> tuple[list[Image.Image], list[np.ndarray]]:
    """A picture and a video that were written and read back; GLM takes one or the other."""
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (50, 90, 3), np.uint8)).save(folder / "picture.png")
    frames = [Image.fromarray(draw.integers(0, 255, (48, 64, 3), np.uint8)) for _ in range(9)]
    frames[0].save(folder / "video.gif", save_all=True, append_images=frames[1:])
    picture, video = read_image(folder / "picture.png"), read_video(folder / "video.gif", frames=8)
    return ([] if family == "glm46v" else [picture]), [video]


def test_from_files_to_a_pruned_answer(family: str, user: Loaded, tmp_path: Path) -> None:
    pictures, videos = files(tmp_path, family)
    given, lm = user.inputs(QUESTION, pictures, videos), user.model
    width = given["input_ids"].shape[1]
    assert not (given["input_ids"] == user.processor.tokenizer.unk_token_id).any()
    plain = lm.generate(**given, max_new_tokens=4, do_sample=False)
    assert plain.shape == (1, width + 4)
    with tokenprune.prune(lm, RECIPE) as pruning:
        pruned = lm.generate(**given, max_new_tokens=4, do_sample=False)
    assert pruned.shape == plain.shape
    state = pruning.state
    assert state is not None
    left = state.views[2].index[0]
    assert int(state.visual[0, left].sum()) == 5
    assert torch.equal(lm.generate(**given, max_new_tokens=4, do_sample=False), plain)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_batch_with_none_one_and_two(family: str, user: Loaded, kind: str) -> None:
    """Each prompt gets its own pictures, or its own videos: as many answers as alone."""
    draw = np.random.default_rng(0)
    shape = (32, 40, 3) if kind == "image" else (4, 32, 32, 3)
    arrays = [draw.integers(0, 255, shape, np.uint8) for _ in range(3)]
    items: list[Any] = [Image.fromarray(array) for array in arrays] if kind == "image" else arrays
    talks = [
        [{"role": "user", "content": [*[{"type": kind}] * count, {"type": "text", "text": QUESTION}]}]
        for count in (1, 0, 2)
    ]
    given = user.batch(talks, **{f"{kind}s": items})
    parts = (items[:1], [], items[1:])
    with torch.no_grad():
        together = user.model(**given).logits[:, -1]
        for row, (talk, own) in enumerate(zip(talks, parts, strict=True)):
            alone = user.model(**user.batch([talk], **{f"{kind}s": own})).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-3)


def test_every_visual_token_has_a_box(family: str, user: Loaded, tmp_path: Path) -> None:
    pictures, videos = files(tmp_path, family)
    given, adapter = user.inputs(QUESTION, pictures, videos), registry().adapter(user.model.config)
    ids, visual = given["input_ids"], adapter.visual(user.model.config, given["input_ids"])
    found = overlay.placed(adapter, user.model.config, ids, visual, given, 0, user.processor)
    assert len(found) == len(pictures) + 1
    assert torch.equal(torch.cat([each.columns for each in found]), visual[0].nonzero()[:, 0])
    assert int(found[-1].boxes[:, 0].max()) + 1 == 8 // EACH.get(family, 2)  # all frames that were read are seen


def made(user: Loaded) -> Callable[[dots.Rows], dict[str, Any]]:
    def inputs(rows: dots.Rows) -> dict[str, Any]:
        (items,) = rows
        pictures = [item for item in items if isinstance(item, Image.Image)]
        videos = [np.stack([np.asarray(f) for f in item]) for item in items if not isinstance(item, Image.Image)]
        return user.inputs(QUESTION, pictures, videos)

    return inputs


def patch(user: Loaded, given: dict[str, Any], kind: str, size: tuple[int, int]) -> tuple[float, float]:
    """Width and height in the picture of what one token is made of."""
    if (grid := given.get(f"{kind}_grid_thw")) is None:
        return (min(size) / 4,) * 2
    merged = given.get(f"{kind}_merge_sizes", torch.tensor([2]))
    _, rows, columns = (grid[0] / torch.tensor([1, merged[0], merged[0]])).tolist()
    return size[0] / columns, size[1] / rows


@pytest.mark.parametrize("at", DOTS, ids=str)
@pytest.mark.parametrize("size", [(192, 96), (80, 128)], ids=str)
def test_the_only_bright_place_is_the_bright_patch(
    user: Loaded, size: tuple[int, int], at: tuple[float, float]
) -> None:
    picture = dotted(size, at)
    pruning, given = dots.keep_brightest(user.model, made(user), [[picture]])
    drawn = pruning.overlay(picture, given, processor=user.processor)
    check(np.asarray(drawn).astype(int), picture, at, patch(user, given, "image", size))


@pytest.mark.parametrize("name", ["qwen3_vl", "glm46v"])
def test_a_transposed_grid_would_be_found(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transposed(panels: int, rows: int, columns: int) -> torch.Tensor:
        return own(panels, rows, columns).unflatten(0, (panels, rows, columns)).transpose(1, 2).flatten(0, 2)

    own, user = grids.grid_boxes, ready(name, tmp_path_factory.getbasetemp())
    monkeypatch.setattr(grids, "grid_boxes", transposed)
    with pytest.raises(AssertionError):
        test_the_only_bright_place_is_the_bright_patch(user, (192, 96), DOTS[0])


def test_frames_of_a_video_are_a_strip(family: str, user: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    size, compression = (96, 64), "use_token_compression"  # which leaves more of dotted frames than of black ones
    if hasattr(user.processor.video_processor, compression):
        monkeypatch.setattr(user.processor.video_processor, compression, False)
    frames = [dotted(size, at) for at in FRAMES for _ in range(EACH.get(family, 2))]
    pruning, given = dots.keep_brightest(user.model, made(user), [[frames]], keep=3)
    drawn = panels(pruning.overlay(frames, given, processor=user.processor), len(FRAMES))
    assert not (drawn[0] == 0).all(-1).any()  # nothing of the black frame survived
    for panel, at in zip(drawn[1:], FRAMES[1:], strict=True):
        assert at is not None
        check(panel, dotted(size, at), at, patch(user, given, "video", size))


def test_a_video_without_what_does_not_change(tmp_path_factory: pytest.TempPathFactory) -> None:
    """VideoLLaMA 3 takes of a frame what differs from the frame before: where the dots are and where they were."""
    user = ready("video_llama_3", tmp_path_factory.getbasetemp())
    frames = [dotted((96, 64), at) for at in FRAMES]
    given, config = made(user)([[frames]]), user.model.config
    ids = given["input_ids"]
    visual = registry().adapter(config).visual(config, ids)
    (video,) = overlay.placed(registry().adapter(config), config, ids, visual, given, 0, user.processor)
    assert torch.equal(video.columns, visual[0].nonzero()[:, 0])
    assert int(visual.sum()) < int(given["video_grid_thw"].prod()) // 4
    dots_of = [[FRAMES[i] for i in (number - 1, number)] for number in range(1, len(FRAMES))]
    for number, places in enumerate(dots_of, 1):
        boxes = video.boxes[video.boxes[:, 0] == number, 1:]
        assert len(boxes) < (video.boxes[:, 0] == 0).sum()
        for x, y in filter(None, places):
            assert any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes.tolist())
