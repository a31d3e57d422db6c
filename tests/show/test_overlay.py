"""Overlays sit exactly on the patches: a bright dot in a black picture goes through the stock image processor and
model, only its token is kept, and the picture's only bright place must be there."""

from __future__ import annotations

import base64
import copy
import io
import re
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import dots
import numpy as np
import pytest
import torch
from dots import PLACES, check, dotted, panels
from families import IMAGE, model
from PIL import Image
from processed import PROCESSORS, Item, inputs, unmixed

import tokenprune
from tokenprune.errors import TokenpruneError
from tokenprune.families import grids, llava, tiles
from tokenprune.parts.adapter import Given
from tokenprune.show import overlay

CASES = {  # processor: picture (width, height) -> size of a patch in it, of each panel
    "llava": {(96, 64): [(16, 16)], (64, 96): [(16, 16)], (101, 67): [(16.75, 16.75)]},
    "llava, padded": {(96, 64): [(24, 24)], (64, 96): [(24, 24)], (101, 67): [(25.25, 25.25)]},
    "llava, stretched": {(96, 64): [(24, 16)], (64, 96): [(16, 24)]},
    "llava_next": {
        (128, 64): [(32, 16), (16, 16)],  # one row of two tiles
        (64, 128): [(16, 32), (16, 16)],
        (96, 96): [(24, 24), (12, 12)],
        (100, 70): [(25, 17.5), (12.5, 12.5)],  # two by two, padding above and below
        (90, 131): [(22.5, 32.75), (16.4, 16.4)],
    },
    "video_llava": {(96, 64): [(16, 16)], (64, 96): [(16, 16)]},
    "qwen2_5_vl": {(96, 48): [(96 / 11, 48 / 5)], (40, 64): [(8, 8)], (130, 70): [(130 / 10, 70 / 5)]},
}
CASE_IDS = [(name, size) for name, sizes in CASES.items() for size in sizes]


def keep_brightest(case: str, rows: Sequence[Sequence[Item]], keep: int = 1) -> tuple[Any, dict[str, Any]]:
    """The pruning after `generate` kept the tokens of these pictures that differ most from those of black ones."""
    return dots.keep_brightest(unmixed(case.split(",")[0]), partial(inputs, case), rows, keep)


@pytest.mark.parametrize("at", PLACES, ids=str)
@pytest.mark.parametrize(("case", "size"), CASE_IDS, ids=str)
def test_the_only_bright_place_is_the_bright_patch(case: str, size: tuple[int, int], at: tuple[float, float]) -> None:
    picture, patches = dotted(size, at), CASES[case][size]
    pruning, given = keep_brightest(case, [[picture]], keep=len(patches))
    drawn = pruning.overlay(picture, given, processor=PROCESSORS[case])
    assert drawn.height == picture.height
    for panel, patch in zip(panels(drawn, len(patches)), patches, strict=True):
        check(panel, picture, at, patch)


def transposed(panels: int, rows: int, columns: int) -> torch.Tensor:
    """A wrong grid: column by column."""
    boxes = GRID(panels, rows, columns).unflatten(0, (panels, rows, columns))
    return boxes.transpose(1, 2).flatten(0, 2)


GRID = grids.grid_boxes


def all_places(case: str, sizes: list[tuple[int, int]]) -> None:
    for size, at in product(sizes, PLACES):
        test_the_only_bright_place_is_the_bright_patch(case, size, at)


@pytest.mark.parametrize("case", ["llava", "llava_next", "video_llava", "qwen2_5_vl"])
def test_a_transposed_grid_would_be_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grids, tiles):
        monkeypatch.setattr(module, "grid_boxes", transposed)
    with pytest.raises(AssertionError):
        all_places(case, list(CASES[case]))


@pytest.mark.parametrize("broken", ["crop", "padding", "unpadding"])
def test_a_wrong_window_would_be_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops and padding that are not followed."""
    if broken == "unpadding":
        case, size = "llava_next", (100, 70)
        monkeypatch.setattr(
            "transformers.image_processing_utils.get_patch_output_size", lambda picture, canvas, **_: canvas
        )
    else:
        case, size = ("llava", (96, 64)) if broken == "crop" else ("llava, padded", (96, 64))
        monkeypatch.setattr(llava, "clip_window", lambda *_: (0.0, 0.0, 1.0, 1.0))
    with pytest.raises(AssertionError):
        all_places(case, [size])


FRAMES = [None, (0.3, 0.55), (0.65, 0.42), (0.55, 0.78)]


@pytest.mark.parametrize("shape", ["pictures", "array"])
@pytest.mark.parametrize("family", ["video_llava", "qwen2_5_vl"])
def test_frames_of_a_video_are_a_strip(family: str, shape: str) -> None:
    """Video-LLaVA has tokens for every frame, Qwen2.5-VL for every pair of frames."""
    places = [at for at in FRAMES for _ in range(1 if family == "video_llava" else 2)]
    frames = [dotted((96, 64), at) for at in places]
    pruning, given = keep_brightest(family, [[frames]], keep=3)
    shown = frames if shape == "pictures" else np.stack([np.asarray(frame) for frame in frames])
    drawn = panels(pruning.overlay(shown, given, processor=PROCESSORS[family]), len(FRAMES))
    patch = (16, 16) if family == "video_llava" else (96 / 9, 64 / 6)
    assert not (drawn[0] == 0).all(-1).any()  # nothing of the black frame survived
    for panel, at in zip(drawn[1:], FRAMES[1:], strict=True):
        assert at is not None
        check(panel, dotted((96, 64), at), at, patch)
    with pytest.raises(TokenpruneError, match="has 4 panels of tokens, got 3 frames"):
        pruning.overlay(frames[:3], given, processor=PROCESSORS[family])


@pytest.mark.parametrize("case", ["llava", "llava, padded", "llava_next", "video_llava", "qwen2_5_vl"])
def test_several_pictures_in_a_ragged_batch(case: str) -> None:
    """Two pictures, none, one, and one with a video: each token belongs to the picture it came from."""
    sizes = list(CASES[case])
    where = {(0, 0): (sizes[0], None), (0, 1): (sizes[1], PLACES[0]), (2, 0): (sizes[0], PLACES[1])}
    dots: dict[tuple[int, int], Any] = {**where, (3, 1): (sizes[1], PLACES[2])}
    pictures = {spot: dotted(*dot) for spot, dot in dots.items()}
    video = [dotted((96, 64), None)] * 2
    rows: list[list[Item]] = [[pictures[0, 0], pictures[0, 1]], [], [pictures[2, 0]], [video, pictures[3, 1]]]
    if "video" not in case and "qwen" not in case:
        rows[3] = [dotted(sizes[0], None), pictures[3, 1]]
    keep = len(CASES[case][sizes[0]])
    pruning, given = keep_brightest(case, rows, keep=keep)
    for (row, number), (size, at) in dots.items():
        drawn = pruning.overlay(pictures[row, number], given, processor=PROCESSORS[case], prompt=row, picture=number)
        for panel, patch in zip(panels(drawn, keep), CASES[case][size], strict=True):
            if at is None:
                assert not (panel == 0).all(-1).any()
            else:
                check(panel, pictures[row, number], at, patch)
    with pytest.raises(TokenpruneError, match="no picture of prompt 1 0: expected one of none"):
        pruning.overlay(pictures[0, 0], given, processor=PROCESSORS[case], prompt=1)
    with pytest.raises(TokenpruneError, match="no picture of prompt 0 2: expected one of 0, 1"):
        pruning.overlay(pictures[0, 0], given, processor=PROCESSORS[case], picture=2)
    with pytest.raises(TokenpruneError, match="no prompt 4: expected one of 0, 1, 2, 3"):
        pruning.overlay(pictures[0, 0], given, processor=PROCESSORS[case], prompt=4)


@pytest.mark.parametrize("at", PLACES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_scores_are_highest_at_the_bright_patch(case: str, at: tuple[float, float]) -> None:
    size = next(iter(CASES[case]))
    picture, patches = dotted(size, at), CASES[case][size]
    pruning, given = keep_brightest(case, [[picture]])
    black = dotted(size, None)
    drawn = panels(pruning.overlay(black, given, processor=PROCESSORS[case], scores=True), len(patches))
    heat = [panel.sum(-1) for panel in drawn]
    hottest = max(heat, key=lambda panel: int(panel.max()))
    rows, columns = (hottest == hottest.max()).nonzero()
    x, y = at[0] * size[0], at[1] * size[1]
    assert columns.min() <= x <= columns.max() + 1
    assert rows.min() <= y <= rows.max() + 1
    assert len(rows) <= np.prod(np.ceil(patches[-1]))


def test_scores_of_each_stage_are_remembered() -> None:
    """Float32 in prompt columns, NaN where nothing was scored; later stages score what earlier ones left."""
    rows: list[list[Item]] = [[dotted((64, 64), PLACES[0])], [], [dotted((64, 64), at) for at in PLACES[:2]]]
    given, lm = inputs("llava", rows), model("llava")
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": layer, "keep": keep}}
                        for layer, keep in ((1, 12), (3, 5))]}  # fmt: skip
    with tokenprune.prune(lm, recipe) as pruning, torch.no_grad():
        lm(**given)
    state = pruning.state
    assert state is not None
    assert set(state.scores) == {1, 3}
    assert all(scores.dtype == torch.float32 for scores in state.scores.values())
    assert torch.equal(~state.scores[1].isnan(), state.visual)
    assert (~state.scores[3].isnan()).sum(1).tolist() == [12, 0, 12]
    for layer, view in state.views.items():
        for row in (0, 2):
            scores = state.scores[layer][row]
            kept = torch.zeros_like(state.visual[row])
            kept[view.index[row][view.valid[row]]] = True
            kept &= ~scores.isnan()
            assert scores[kept].min() > scores[~kept & ~scores.isnan()].max()
    picked = state.select(torch.tensor([2, 2]))
    assert torch.equal(picked.scores[3].nan_to_num(9), state.scores[3][[2, 2]].nan_to_num(9))
    picture = rows[0][0]
    first, last = (pruning.overlay(picture, given, stage=layer) for layer in (1, 3))
    both = [(np.asarray(drawn) == np.asarray(picture)).all(-1).sum() / 256 for drawn in (first, last)]
    assert both == [12, 5]
    assert pruning.overlay(picture, given).tobytes() == last.tobytes()
    with pytest.raises(TokenpruneError, match="no stage 2: expected one of 1, 3"):
        pruning.overlay(picture, given, stage=2)


def test_beams_and_several_answers() -> None:
    """Rows of a batch that transformers repeated, each with its prompt's picture."""
    rows: list[list[Item]] = [[dotted((100, 70), PLACES[0])], [dotted((128, 64), PLACES[1])]]
    given, lm = inputs("llava_next", rows), model("llava_next")
    with tokenprune.prune(lm, "random", "prune.0.schedule={name: fixed, layer: 2, keep: 0.5}") as pruning:
        lm.generate(**given, max_new_tokens=2, do_sample=True, num_return_sequences=3)
    drawn = [pruning.overlay(rows[row // 3][0], given, prompt=row) for row in range(6)]
    assert [one.tobytes() for one in drawn[::3]] == [one.tobytes() for one in drawn[2::3]]
    assert (np.asarray(drawn[0]) != 90).any()


def test_the_processor_may_be_given_to_prune() -> None:
    tall, process = dotted((64, 96), PLACES[0]), PROCESSORS["llava, padded"]
    given = inputs("llava, padded", [[tall]])
    with tokenprune.prune(model("llava"), "divprune", "prune.0.schedule.keep=5", processor=process) as pruning:
        model("llava")(**given)
    drawn = pruning.overlay(tall)
    assert drawn.tobytes() == pruning.overlay(tall, processor=process).tobytes()
    assert drawn.tobytes() != pruning.overlay(tall, processor=PROCESSORS["llava"]).tobytes()


def test_an_adapter_is_told_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, also that of `prune`, and the size of the picture that is shown, once its number is known."""
    told: list[Given] = []

    def boxes(self: Any, given: Given) -> Any:
        told.append(given)
        return own(self, given)

    own = llava.LlavaAdapter.boxes
    monkeypatch.setattr(llava.LlavaAdapter, "boxes", boxes)
    tall, wide, process = dotted((64, 96), None), dotted((96, 64), None), PROCESSORS["llava"]
    given = inputs("llava", [[tall, wide], [wide]])
    with tokenprune.prune(model("llava"), "divprune", processor=process) as pruning, torch.no_grad():
        model("llava")(**given)
    pruning.overlay(tall, given)
    pruning.overlay([np.asarray(tall)], given, processor=(other := PROCESSORS["llava, padded"]))
    pruning.overlay(wide, given, picture=1)
    pruning.overlay(wide, prompt=1)
    assert [one.sizes for one in told[::2]] == [()] * 4
    assert [(one.processor, one.sizes) for one in told[1::2]] == [
        (process, ((96, 64),)), (other, ((96, 64),)), (process, (None, (64, 96))), (process, (None, None, (64, 96)))
    ]  # fmt: skip
    assert [one.inputs for one in told[1::2]] == [given, given, given, {}]


def test_what_is_missing_is_said() -> None:
    tall, lm = dotted((64, 96), PLACES[0]), unmixed("llava")
    pruning = tokenprune.prune(lm, "random")
    with pytest.raises(TokenpruneError, match="nothing was dropped yet"):
        pruning.overlay(tall)
    pruning, given = keep_brightest("llava", [[tall]])
    with pytest.raises(TokenpruneError, match=r"64 x 96 is cropped or padded.*pass processor="):
        pruning.overlay(tall, given)
    pruning.overlay(dotted((64, 64), None))  # a square one looks the same either way
    for case in ("llava_next", "qwen2_5_vl"):
        pruning, given = keep_brightest(case, [[tall]])
        pruning.overlay(tall, given)  # no processor needed
        with pytest.raises(TokenpruneError, match="pass inputs=, all that the processor returned"):
            pruning.overlay(tall)
    with pytest.raises(TokenpruneError, match="pass inputs="):  # of another batch
        pruning.overlay(tall, inputs("qwen2_5_vl", [[dotted((96, 96), None)]]))


def test_a_report_is_one_page_with_overlays_of_every_stage(tmp_path: Path) -> None:
    picture, path = dotted((96, 64), PLACES[0]), tmp_path / "report.html"
    given, lm = inputs("llava", [[picture, picture]]), model("llava")
    recipe = {"name": "<b>&", "prune": [
        {"scorer": "random", "schedule": {"name": "fixed", "layer": layer, "keep": keep}}
        for layer, keep in ((1, 12), (3, 5))
    ]}  # fmt: skip
    with tokenprune.prune(lm, recipe) as pruning, torch.no_grad():
        lm(**given)
    path.write_text("old")
    report = pruning.report(path, [picture, picture], given, processor=PROCESSORS["llava"])
    page = path.read_text()
    assert str(report) == str(pruning.report())
    assert page.count("data:image/png;base64,") == page.count("<img") == 2 + 2 * 2 * 2
    drawn = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    assert drawn[0].tobytes() == drawn[1].tobytes() == picture.tobytes()
    expected = pruning.overlay(picture, given, processor=PROCESSORS["llava"], stage=1)
    assert drawn[2].tobytes() == expected.tobytes()
    assert "http" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp; on llava" in page
    for part in ("<td>12/32</td>", "<td>5/32</td>", "layer 3", f"FLOPs {report.flops_share:.1%}"):
        assert part in page
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("old")
    with pytest.raises(TokenpruneError, match="pass processor="):
        pruning.report(path, [picture], given)
    assert path.read_text() == "old"
    with pytest.raises(TokenpruneError, match=r"cannot write .*report\.html/inside\.html"):
        pruning.report(path / "inside.html")


class Words:
    """Reads token 7 as the only one that is not special."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join("<seven>" if i == 7 else "?" for i in ids)


def test_a_report_says_what_was_asked_and_answered_and_by_what(tmp_path: Path) -> None:
    path, lm = tmp_path / "report.html", model("llava")
    given = inputs("llava", [[dotted((64, 64), None)], [dotted((64, 64), None)] * 2])
    given["input_ids"][0, -1] = 7
    with tokenprune.prune(lm, "random", processor=Words()) as pruning, torch.no_grad():
        lm(**given)
    real = int((given["attention_mask"][0].bool() & (given["input_ids"][0] != IMAGE)).sum())

    def said(**more: Any) -> list[tuple[str, str]]:
        pruning.report(path, **more)
        return re.findall(r"<dt>(.*?)</dt><dd.*?>(.*?)</dd>", path.read_text(), re.DOTALL)

    assert said() == [("Prompt", " ".join(["?"] * (real - 1) + ["&lt;seven&gt;"]))]  # no padding, no pictures
    assert said(question="why <b>?", answer="") == [("Question", "why &lt;b&gt;?"), ("Answer", "(nothing)")]
    assert said(processor=PROCESSORS["llava"], answer="so") == [("Answer", "so")]  # that one reads no text
    page = path.read_text()
    for part in ("tokenprune", "torch", "transformers"):
        assert f"{part} {version('tokenprune-mllm' if part == 'tokenprune' else part)}" in page
    assert "model unnamed (llava, float32 on cpu)" in page
    lm.config._name_or_path = "/home/someone/some-llava"
    try:
        pruning.report(path)
    finally:
        lm.config._name_or_path = ""
    assert "model some-llava (llava" in path.read_text()
    assert "someone" not in path.read_text()
    with pytest.raises(TokenpruneError, match="no prompt 2: expected one of 0, 1"):
        pruning.report(path, prompt=2)


def test_headings_name_a_layer_once_and_colours_what_they_mean(tmp_path: Path) -> None:
    picture, path = dotted((64, 64), PLACES[0]), tmp_path / "report.html"
    given, lm = inputs("llava", [[picture]]), model("llava")
    recipe = {"prune": [{"scorer": "entropy", "schedule": {"name": "fixed", "layer": layer, "keep": keep}}
                        for layer, keep in ((1, 9), (3, 5))]}  # fmt: skip
    with tokenprune.prune(lm, recipe) as pruning, torch.no_grad():
        lm(**given)
    pruning.report(path, [picture], given)
    page, state = path.read_text(), pruning.state
    assert state is not None
    assert re.findall("<h2>(.*?)</h2>", page)[1:] == ["After layer 1", "After layer 3"]
    bars = re.findall(r'<div class="bar"><span>(.*?)</span><i></i><span>(.*?)</span></div>', page)
    scores = [state.scores[layer][0] for layer in (1, 3)]
    assert bars == [
        tuple(f"{end:.3g}" for end in (each[~each.isnan()].min(), each[~each.isnan()].max())) for each in scores
    ]
    red, green, blue = (round(float(each)) for each in overlay._colour(1.0))
    assert f"rgb({red} {green} {blue}))" in page  # the bright end of the bar is the brightest colour of the pictures


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    path, lm = tmp_path / "report.html", model("llava")
    with tokenprune.prune(lm, "random", "prune.0.schedule={name: fixed, layer: 2, keep: 1.0}") as pruning:
        pruning.report(path)
        assert "Nothing was dropped." in path.read_text()
        with torch.no_grad():
            lm(**inputs("llava", [[dotted((64, 64), None)]]))
    pruning.report(path, answer="yes")
    assert "Nothing was dropped." in path.read_text()
    assert "<table" not in path.read_text()


def test_a_full_feature_tower_has_a_token_for_cls() -> None:
    config = copy.deepcopy(model("llava").config)
    config.vision_feature_select_strategy = "full"
    boxes = grids.picture_boxes(config)
    assert boxes.shape == (17, 5)
    assert boxes[0, 1:].isnan().all()
    assert not boxes[1:].isnan().any()
