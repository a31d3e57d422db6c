"""Families with square pictures, or tiles of them: each token's box lies on the pixels that the token was made of.

Those whose processors want torchvision are in `tests/processors/tiles.py`.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import pytest
import torch
from dots import dotted, places_of_a_batch
from families import IMAGE, RAGGED, inputs, model
from transformers import (
    Gemma3ImageProcessorPil,
    Gemma4ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from tokenprune.families import cut, tiles
from tokenprune.families.llava_next_video import LlavaNextVideoAdapter
from tokenprune.parts.adapter import Given
from tokenprune.registry import registry

FAMILIES = [
    "gemma3", "gemma4_small", "gemma4_large", "internvl", "llava_onevision", "llava_next_video", "mistral3", "idefics3",
    "smolvlm", "llama4", "aya_vision", "cohere2_vision", "paligemma",
]  # fmt: skip
SQUARE = {"size": {"height": 32, "width": 32}}
TILES = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
CLIP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS: dict[str, Any] = {
    "gemma3": Gemma3ImageProcessorPil(**SQUARE),
    "gemma4_large": Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70),
    "paligemma": SiglipImageProcessorPil(**SQUARE),
    "mistral3": PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size={"height": 8, "width": 8}),
    "llava_next_video": LlavaNextImageProcessorPil(**CLIP, **TILES),
    "llava_onevision": LlavaOnevisionImageProcessorPil(**SQUARE, **TILES),
}
PICTURES = [(128, 64), (40, 80), (96, 96), (130, 100)]


@cache
def unmixed(family: str) -> Any:
    """The tiny model with a vision tower whose patches do not look at each other."""
    lm = copy.deepcopy(model(family))
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if re.search(r"vision.*\.(out_proj|o_proj)\.", name):
                weight.zero_()
    return lm


def process(family: str, pictures: list[Any], together: bool = False) -> dict[str, Any]:
    """What the image processor gives for prompts of one picture each, or for one with all."""
    nested = [pictures] if together else [[picture] for picture in pictures]
    return dict(PROCESSORS[family](nested if family == "llava_onevision" else pictures, return_tensors="pt"))


def boxes(family: str, given: Any, count: int) -> list[torch.Tensor]:
    """Of the batch's pictures, as the family's adapter has them."""
    config = model(family).config
    found = registry().adapter(config).boxes(Given(config, given))
    assert found is not None
    return [each for each, _ in zip(found[config.image_token_id], range(count), strict=False)]


@torch.no_grad()
def features(family: str, made: dict[str, Any]) -> list[torch.Tensor]:
    """Of each picture, a row for each token."""
    names = ("pixel_values", "image_sizes", "image_position_ids", "batch_num_images")
    return list(
        unmixed(family).get_image_features(**{name: made[name] for name in names if name in made}).pooler_output
    )


def dots_are_found(family: str, share: float, together: bool = False) -> None:
    """A dot in the middle of a token's box changes this token most, of those in its panel."""
    black = process(family, [dotted(size, None) for size in PICTURES], together)
    places = boxes(family, black, len(PICTURES))
    middle = [(each[:, 1:3] + each[:, 3:5]) / 2 for each in places]
    placed = [((each > 0) & (each < 1)).all(1).nonzero()[:, 0] for each in middle]  # padding shows no dot
    tokens = [int(some[int(share * len(some))]) for some in placed]
    spots = [each[token].tolist() for each, token in zip(middle, tokens, strict=True)]
    dots = [dotted(size, (x, y), 3) for size, (x, y) in zip(PICTURES, spots, strict=True)]
    pairs = zip(features(family, black), features(family, process(family, dots, together)), strict=True)
    found = [(a - b).norm(dim=-1) for a, b in pairs]
    for each, rows, token in zip(places, found, tokens, strict=True):
        panel = (each[:, 0] == each[token, 0]).nonzero()[:, 0]
        assert int(panel[rows[panel].argmax()]) == token


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("family", PROCESSORS)
def test_a_dot_in_the_middle_of_a_box_is_in_that_token(family: str, share: float) -> None:
    dots_are_found(family, share)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.65])
def test_several_pictures_are_padded_and_not_cut(share: float) -> None:
    dots_are_found("llava_onevision", share, together=True)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("family", PROCESSORS)
def test_there_are_as_many_boxes_as_tokens(family: str, together: bool) -> None:
    made = process(family, [dotted(size, None) for size in PICTURES], together)
    tokens = features(family, made)
    assert [len(places) for places in boxes(family, made, len(PICTURES))] == [len(rows) for rows in tokens]


def test_a_wrong_canvas_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiles.within
    monkeypatch.setattr(tiles, "within", lambda boxes, part: own(boxes[:, [0, 2, 1, 4, 3]], part))
    with pytest.raises(AssertionError):
        dots_are_found("llava_onevision", 0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_and_videos_of_a_batch_find_their_tokens(family: str) -> None:
    """As many as each prompt has, in its order, with tokens that are next to nobody else's."""
    found = [(ids, picture) for ids, row in places_of_a_batch(family) for picture in row]
    numbers = [picture.number for ids, picture in found if ids[picture.columns[0]] == IMAGE]
    assert numbers == list(range(len(numbers)))


def test_what_a_tower_does_not_see_is_in_no_box() -> None:
    """A tile of 11 pixels has two patches of 5, at both sides of the tile's middle, and none at its last pixel."""
    config = copy.deepcopy(model("llava_onevision").config)
    config.vision_config.image_size, config.vision_config.patch_size = 11, 5
    config.image_grid_pinpoints = [[11, 22]]
    edges = torch.tensor([0, 5, 11, 16]) / 22
    whole, rows = tiles.tiled_boxes(config, 11, 22).split([4, 10])
    assert torch.allclose(whole[:, 3].unique(), torch.tensor([5, 10]) / 11)
    assert torch.allclose(rows[:4, 1], edges)
    assert torch.allclose(rows[:4, 3], edges + 5 / 22)
    assert rows[4, 1:].isnan().all()


@pytest.mark.parametrize("most", [3, 6, 12])
def test_the_nearest_layout_is_that_of_the_image_processor(most: int) -> None:
    for height, width in [(32, 32), (300, 301), (97, 31), (640, 480), (100, 340), (55, 400), (411, 200), (90, 62)]:
        columns, rows = get_optimal_tiled_canvas((height, width), (32, 32), 1, most)
        count = rows * columns
        layout = cut.nearest([()] * (count + (count > 1)), (height, width))
        assert layout == cut.Layout(rows, columns)


def test_tiles_of_a_picture_of_unknown_size_have_no_place() -> None:
    given, config = inputs("internvl", RAGGED), model("internvl").config
    adapter = registry().adapter(config)

    def found(*sizes: tuple[int, int] | None) -> list[torch.Tensor]:
        answer = adapter.boxes(Given(config, given, sizes=sizes))
        assert answer is not None
        return list(answer[config.image_token_id])

    unknown, known = found(), found((64, 30), None)
    assert [len(each) for each in unknown] == [len(each) for each in known] == [12, 4, 20]
    assert [bool(each[:, 1].isnan().any()) for each in unknown] == [True, False, True]
    assert [bool(each[:, 1].isnan().any()) for each in known] == [False, False, True]
    assert torch.equal(known[0][:8, 2], torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]) / 4)  # a tile below the other


def test_frames_are_cropped_and_pictures_are_not() -> None:
    adapter = LlavaNextVideoAdapter()
    assert adapter.window(PROCESSORS["llava_next_video"], 96, 48) == (0, 0, 1, 1)
    assert adapter.window(SiglipImageProcessorPil(**CLIP, do_center_crop=True), 96, 48) == (0.25, 0, 0.75, 1)
