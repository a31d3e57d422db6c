"""Families with pictures of any resolution: each token's box lies on the pixels that the token was made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dots import dotted, places_of_a_batch
from families import MIXED, inputs, model
from processed import unmixed
from transformers import (
    Glm4vImageProcessorPil,
    Glm46VImageProcessorPil,
    Qwen2VLImageProcessorPil,
    VideoLlama3ImageProcessorPil,
)

from tokenprune.families import grids
from tokenprune.parts.adapter import Given
from tokenprune.registry import registry

SIZES = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "patch_size": 4}
QWEN = Qwen2VLImageProcessorPil(**SIZES, merge_size=2, temporal_patch_size=2)
PROCESSORS: dict[str, Any] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), QWEN),
    **dict.fromkeys(("glm4v", "glm4v_moe"), Glm4vImageProcessorPil(**SIZES, merge_size=2, temporal_patch_size=2)),
    "glm46v": Glm46VImageProcessorPil(**SIZES, merge_size=2, temporal_patch_size=2),
    "video_llama_3": VideoLlama3ImageProcessorPil(**SIZES, merge_size=1),
}
PICTURES = [(96, 48), (40, 64), (130, 70)]


def boxes(family: str, given: Any) -> list[torch.Tensor]:
    """Of all pictures, as the family's adapter has them."""
    config = model(family).config
    found = registry().adapter(config).boxes(Given(config, given))
    assert found is not None
    return list(found[config.image_token_id])


@torch.no_grad()
def features(family: str, pictures: list[Any]) -> list[torch.Tensor]:
    """Of each picture, a row for each token, from a tower whose patches do not look at each other."""
    made = dict(PROCESSORS[family](pictures, return_tensors="pt"))
    return list(unmixed(family).get_image_features(**made).pooler_output)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("family", PROCESSORS)
def test_a_dot_in_the_middle_of_a_box_is_in_that_token(family: str, share: float) -> None:
    places = boxes(family, dict(PROCESSORS[family]([dotted(size, None) for size in PICTURES], return_tensors="pt")))
    tokens = [int(share * len(each)) for each in places]
    middles = [(each[token, 1:3] + each[token, 3:5]) / 2 for each, token in zip(places, tokens, strict=True)]
    dots = [dotted(size, (float(x), float(y)), 3) for size, (x, y) in zip(PICTURES, middles, strict=True)]
    black, bright = features(family, [dotted(size, None) for size in PICTURES]), features(family, dots)
    assert [int((a - b).norm(dim=-1).argmax()) for a, b in zip(black, bright, strict=True)] == tokens


@pytest.mark.parametrize("family", PROCESSORS)
def test_there_are_as_many_boxes_as_tokens(family: str) -> None:
    made = dict(PROCESSORS[family]([dotted(size, None) for size in PICTURES], return_tensors="pt"))
    tokens = features(family, [dotted(size, None) for size in PICTURES])
    assert [len(places) for places in boxes(family, made)] == [len(rows) for rows in tokens]
    assert len({len(rows) for rows in tokens}) > 1


@pytest.mark.parametrize("family", ["qwen3_vl", "glm4v", "video_llama_3"])
def test_a_transposed_grid_would_be_found(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def transposed(panels: int, rows: int, columns: int) -> torch.Tensor:
        return own(panels, rows, columns).unflatten(0, (panels, rows, columns)).transpose(1, 2).flatten(0, 2)

    own = grids.grid_boxes
    monkeypatch.setattr(grids, "grid_boxes", transposed)
    monkeypatch.setattr("tokenprune.families.video_llama_3.grid_boxes", transposed)
    with pytest.raises(AssertionError):
        test_a_dot_in_the_middle_of_a_box_is_in_that_token(family, 0.3)


@pytest.mark.parametrize("family", PROCESSORS)
def test_pictures_and_videos_of_a_batch_find_their_tokens(family: str) -> None:
    """As many as each prompt has, in its order, each with the columns of one stretch of placeholders."""
    for _, found in places_of_a_batch(family):
        assert all((picture.columns.diff() == 1).all() for picture in found)


def test_a_video_that_lost_tokens_has_boxes_for_the_others() -> None:
    """VideoLLaMA 3 takes only the tokens of a frame that changed since the frame before."""
    given, config = inputs("video_llama_3", MIXED), model("video_llama_3").config
    found = registry().adapter(config).boxes(Given(config, given))
    assert found is not None
    assert [len(video) for video in found[config.video_token_id]] == [13, 13]
    video = next(iter(found[config.video_token_id]))
    assert torch.equal(video[8:], grids.grid_boxes(2, 2, 4)[8:13])
