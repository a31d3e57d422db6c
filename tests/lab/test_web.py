"""The demo as a web page: what it says is what the library says, and a Chromium can use it.

What needs Gradio and a browser runs with `make test-web`; `make test` checks the rest.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from commands import Stub
from PIL import Image

import tokenprune
from tokenprune.cli import main
from tokenprune.errors import BudgetError, LayerError, MediaError, PromptError, TokenpruneError, UnknownNameError
from tokenprune.lab import plots, web
from tokenprune.lab.loading import Loaded, load_model
from tokenprune.lab.pico import scenes
from tokenprune.lab.plots import base

SCENE = next(scenes.held_out(0))
QUESTION = SCENE.questions[-1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_TOWER = {"tower": "vision", "scorer": "random", "schedule": {"name": "spread", "keep": 0.5, "strategy": "skip"}}
DEEP = {"scorer": "random", "schedule": {"name": "fixed", "layer": 4, "keep": 9}}
WAIT = 60_000  # milliseconds: an upper bound, nothing waits that long
SEEN = "e => { const box = e.getBoundingClientRect(); return box.top >= 0 && box.bottom <= window.innerHeight }"


def missing(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) is None for module in modules)


needs_gradio = pytest.mark.skipif(missing("gradio"), reason="needs Gradio: make test-web")
needs_browser = pytest.mark.skipif(
    missing("gradio", "playwright") or CHROMIUM is None,
    reason="needs Gradio and Playwright (make test-web) and a Chromium on this machine (apt-get install chromium)",
)


@pytest.fixture(scope="module")
def pico() -> Loaded:
    return load_model("pico")


@pytest.fixture(scope="module")
def made(pico: Loaded) -> web.Comparison:
    return web.compare(pico, SCENE.picture, QUESTION.text, "pyramiddrop")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        main(["demo", "--web", *arguments])
    return int(done.value.code or 0), capsys.readouterr().err


# What the page says


def test_both_sides_are_what_the_library_says(pico: Loaded, made: web.Comparison) -> None:
    inputs = pico.inputs(QUESTION.text, [SCENE.picture])
    plain = pico.answer(inputs)
    with tokenprune.prune(pico.model, "pyramiddrop", processor=pico.processor) as pruning:
        pruned = pico.answer(inputs)
    report = pruning.report()
    left, right = made.sides
    assert (left.name, left.answer, left.tokens, left.kv_mib, left.flops_share) == (
        *("unpruned", plain, 144, report.kv_mib.full),
        1.0,
    )
    assert (right.name, right.answer, right.tokens) == ("pyramiddrop", pruned, report.average[0])
    assert (right.kv_mib, right.flops_share) == (report.kv_mib.pruned, report.flops_share)
    assert plain != pruned  # or the sides could be swapped
    assert made.stages == report.stages
    assert made.percent == round(100 * report.average[0] / 144) < 100
    assert min(left.prefill_ms, right.prefill_ms) > 0


def test_pictures_of_every_stage(pico: Loaded, made: web.Comparison) -> None:
    captions = [caption for _, caption in made.figures]
    each = [text for s in made.stages for text in (f"layer {s.layer}: {s.kept[0]} left", f"layer {s.layer}: scores")]
    assert captions == each
    assert len({picture.tobytes() for picture, _ in made.figures}) == 6
    assert {picture.size for picture, _ in made.figures} == {(288, 288)}  # 96 pixels, three times
    inputs = pico.inputs(QUESTION.text, [SCENE.picture])
    with tokenprune.prune(pico.model, "pyramiddrop", processor=pico.processor) as pruning, torch.no_grad():
        pico.model(**inputs)
    drawn = pruning.overlay(SCENE.picture, inputs, stage=made.stages[0].layer)
    assert made.figures[0][0].resize((96, 96), Image.Resampling.NEAREST).tobytes() == drawn.tobytes()


def test_the_model_is_left_as_it_was(pico: Loaded, made: web.Comparison) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pico.model.modules())

    before = hooks()  # transformers has some of its own
    web.compare(pico, SCENE.picture, QUESTION.text, "fastv")
    with pytest.raises(BudgetError):
        web.compare(pico, SCENE.picture, QUESTION.text, "fastv", budget="1/100")
    assert hooks() == before


def test_the_entropy_figure_marks_the_models_layer(made: web.Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made.entropy.size == (750, 480)
    assert "ecl prunes this model at layer 2. In this prompt alone: no collapse found" in made.collapse
    figures: list[Any] = []
    monkeypatch.setattr(base, "png", lambda figure: figures.append(figure) or b"")
    state = {"entropy": [1.0, 2.0, 0.5], "interval": [[1.0, 2.0, 0.5]] * 2, "ecl": {"layer": 2, "found": True}}
    for prompts, known in ((1, 1), (9, None)):
        plots.entropy({"prompts": prompts, "depth": 3, "states": {"queries": state}}, "", known)
    legends = [figure.axes[0].get_legend() for figure in figures]
    assert [legend.get_title().get_text() for legend in legends] == ["", "band: 95 % over prompts"]
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert texts == [["queries (ECL 2)", "ECL of the model: 1"], ["queries (ECL 2)"]]
    marked = [line.get_xdata()[0] for line in figures[0].axes[0].lines[1:]]
    assert marked == [2.5, 1.5]


@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava", "qwen2_5_vl"])
def test_every_family(family: str) -> None:
    made = web.compare(Stub(family), SCENE.picture.resize((96, 64)), "x", "fastv", budget="3/4")  # type: ignore[arg-type]
    (stage,) = made.stages
    assert made.visual == stage.total[0] > stage.kept[0] > 0
    assert made.sides[1].tokens < made.sides[0].tokens == made.visual
    assert min(made.figures[0][0].size) >= 240
    assert made.figures[0][0].tobytes() != made.figures[1][0].tobytes()


def test_budget_and_layer_move_tokens_and_pictures(pico: Loaded) -> None:
    found = [
        web.compare(pico, SCENE.picture, QUESTION.text, "entropyprune", *lines, budget=budget)
        for lines, budget in (((), "1/2"), ((), "33/100"), (("prune.0.schedule.layer=1",), "33/100"))
    ]
    assert [one.percent for one in found] == [50, 33, 33]
    assert [one.stages[0].layer for one in found] == [2, 2, 1]
    assert len({one.figures[0][0].tobytes() for one in found}) == 3


@pytest.mark.parametrize(
    ("error", "question", "recipe", "lines", "budget"),
    [
        (BudgetError, "x", "entropyprune", ["prune.0.schedule.layer=7"], "30/100"),
        (LayerError, "x", "entropyprune", ["prune.0.schedule.layer=8"], None),
        (UnknownNameError, "x", "entropyprune@nonesuch", [], None),
        (PromptError, "  ", "entropyprune", [], None),
        (PromptError, "x" * (web.LETTERS + 1), "entropyprune", [], None),
    ],
)
def test_settings_that_cannot_be_are_errors_of_ours(
    pico: Loaded, error: type[Exception], question: str, recipe: str, lines: list[str], budget: str | None
) -> None:
    with pytest.raises(error):
        web.compare(pico, SCENE.picture, question, recipe, *lines, budget=budget)


def test_nothing_dropped_is_said(pico: Loaded) -> None:
    made = web.compare(pico, SCENE.picture, QUESTION.text, "entropyprune", budget="100/100")
    assert (made.stages, made.percent) == ([], 100)
    assert [caption for _, caption in made.figures] == ["all 144 tokens"]
    assert "Nothing was dropped" in web.table(made)


def test_the_table_is_escaped_and_whole(made: web.Comparison) -> None:
    left, right = made.sides
    hostile = replace(
        made, question="<em>", unknown=["<s>"],
        sides=(replace(left, answer="<script>"), replace(right, answer="", name="<b>")),
    )  # fmt: skip
    page = web.table(hostile, "<i>")
    assert not re.search("<script>|<th><b>|<i>|<em>|<s>", page)
    for part in (
        "&lt;em&gt;",
        "&lt;s&gt;",
        "&lt;script&gt;",
        "(nothing)",
        "&lt;b&gt;",
        "&lt;i&gt;",
        "144 of 144",
        f"{left.kv_mib:.2f} MiB",
    ):
        assert part in page
    assert f"After layer {made.stages[0].layer}, attention keeps {made.stages[0].kept[0]} of 144; after" in page
    assert "right answer" not in web.table(made)


def test_words_that_the_model_cannot_read_are_named(pico: Loaded) -> None:
    made = web.compare(pico, SCENE.picture, "what breed is the circle?", "fastv")
    assert (made.question, made.unknown) == ("what breed is the circle?", ["breed"])
    assert "does not know the words <b>breed</b>" in web.table(made)
    made = web.compare(pico, SCENE.picture, f" {QUESTION.text}", "fastv")
    assert (made.question, made.unknown) == (QUESTION.text, [])
    assert "does not know" not in web.table(made)


def test_what_pico_is_said_to_know_it_has_words_for(pico: Loaded) -> None:
    for scene in islice(scenes.held_out(0), 20):
        for question in scene.questions:
            assert web.unknown_words(pico, question.text) == []


def test_an_upload_is_turned_and_shrunk(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new("RGB", (4096, 100), "red").save(tmp_path / "a.jpg", exif=exif)
    assert web.upload(tmp_path / "a.jpg").size == (50, 2048)


def test_an_upload_that_is_no_picture_names_its_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(MediaError, match=r"^cannot read the picture a\.png: ") as caught:
        web.upload(tmp_path / "a.png")
    assert str(tmp_path) not in str(caught.value)
    SCENE.picture.save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 96 - 1)
    with pytest.raises(MediaError, match=r"b\.png.*exceeds limit"):
        web.upload(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("recipe", "number"), [("entropyprune", 0), ("fastv@64", 0), ("pyramiddrop", None), ("both", 1), ("tower", None)]
)
def test_which_pass_has_a_layer_to_move(recipe: str, number: int | None) -> None:
    ours: dict[str, Any] = {"both": {"prune": [IN_TOWER, DEEP]}, "tower": {"prune": [IN_TOWER]}}
    assert web.movable(ours.get(recipe, recipe)) == number


def test_stages_inside_the_vision_tower(pico: Loaded) -> None:
    """Nobody keeps their scores; the layer that can be moved is the decoder's."""
    recipe = {"name": "both", "prune": [IN_TOWER, DEEP]}
    made = web.compare(pico, SCENE.picture, QUESTION.text, recipe, "prune.1.schedule.layer=5")
    assert [stage.vision_layer is None for stage in made.stages] == [False] * (len(made.stages) - 1) + [True]
    assert len(made.stages) > 1
    assert [caption for _, caption in made.figures][-3:] == [
        f"{made.stages[-2].where}: {made.stages[-2].kept[0]} left", "layer 5: 9 left", "layer 5: scores",
    ]  # fmt: skip
    assert made.stages[-2].where.startswith("tower")
    assert f"after layer 5, random keeps 9 of {made.stages[-1].total[0]}" in web.table(made)


# The command


def test_without_gradio_one_sentence_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, err = run(capsys)
    assert code == 1
    assert 'in a checkout of tokenprune, pip install -e ".[demo]"' in err
    assert err.count("\n") == 1


def test_a_budget_is_chosen_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(capsys, "--budget", "1/3")
    assert code == 2
    assert "choose it on the page" in err


@needs_gradio
def test_an_unknown_recipe_is_said_before_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(capsys, "-r", "entropyprun")
    assert code == 2
    assert "did you mean 'entropyprune'" in err


# The server


@needs_gradio
def test_the_server_asks_nobody_and_limits_uploads(
    pico: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import httpx

    asked, resolve = set(), socket.getaddrinfo

    def note(host: Any, *more: Any, **options: Any) -> Any:
        asked.add(str(host))
        return resolve(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", note)
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    mine = tmp_path / "mine.yaml"
    mine.write_text("prune: [{scorer: random, schedule: {name: fixed, layer: 2, keep: 9}}]")
    SCENE.picture.save(tmp_path / "mine.png")
    page, port = web.build(pico, "fastv@64", seed=3), free_port()
    try:
        address = web.serve(page, port=port)
        assert address == f"http://127.0.0.1:{port}/"
        assert (page.share, page.share_url, page.analytics_enabled) == (False, None, False)
        with pytest.raises(TokenpruneError, match=f"cannot listen on 127.0.0.1:{port}"):
            web.serve(web.build(pico, str(mine), tmp_path / "mine.png"), port=port)
        sizes = {
            size: httpx.post(f"{address}gradio_api/upload", files={"files": bytes(size)}) for size in (9, 11 << 20)
        }
        assert [answer.status_code for answer in sizes.values()] == [200, 413]
        outside = httpx.get(f"{address}gradio_api/file=/etc/hostname")
        assert outside.status_code == 403
        limits = {fn.concurrency_id: fn.concurrency_limit for fn in page.fns.values() if fn.name == "ask"}
        assert limits == {"model": 1}
    finally:
        page.close()
    assert asked <= {"127.0.0.1", "localhost", "None", "0.0.0.0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """`tokenprune demo --web` in a process of its own."""
    command = [sys.executable, "-c", "from tokenprune.cli import main; main()", "demo", "--web"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*command, "--port", str(free_port())], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert server.stdout is not None
    said = server.stdout.readline()
    yield said.split()[0]
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end there must be no error in the console and no request to another host."""
    errors, hosts = list[str](), set[str]()

    def open_page(width: int = 1280, height: int = 900, color_scheme: str = "light") -> Any:
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=color_scheme)
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(address)
        page.wait_for_selector("#answers table")
        return page

    yield open_page
    for context in chromium.contexts:
        context.close()
    assert errors == []
    assert hosts - {""} == {urlsplit(address).netloc}


def cells(page: Any) -> dict[str, list[str]]:
    rows = page.eval_on_selector_all(
        "#answers tr", "rows => rows.map(row => [...row.children].map(cell => cell.innerText.trim()))"
    )
    return {name: values for name, *values in rows}


def overlay(page: Any) -> str:
    return str(page.get_attribute("#overlays img >> nth=0", "src"))


def slide(page: Any, name: str, share: float) -> None:
    """Press the slider at a share of its width."""
    box = page.locator(f"#{name} input[type=range]").bounding_box()
    page.locator(f"#{name} input[type=range]").click(position={"x": box["width"] * share, "y": box["height"] / 2})


def choose(page: Any, name: str, option: str) -> None:
    page.get_by_role("combobox", name=name).click()
    page.get_by_role("option", name=option, exact=True).click()


def changed(page: Any, before: dict[str, list[str]], row: str) -> dict[str, list[str]]:
    """The table once a row of it is another."""
    script = (
        "([name, old]) => [...document.querySelectorAll('#answers tr')].some(row => row.children[0].innerText.trim() "
    )
    script += "=== name && [...row.children].slice(1).map(cell => cell.innerText.trim()).join() !== old)"
    page.wait_for_function(script, arg=[row, ",".join(before[row])])
    return cells(page)


@needs_browser
def test_load_ask_and_move_the_sliders(opened: Callable[..., Any], pico: Loaded) -> None:
    page = opened()
    first = cells(page)
    expected = web.compare(pico, SCENE.picture, SCENE.questions[0].text, "entropyprune")
    assert first[""] == ["unpruned", "entropyprune"]
    assert first["answer"] == [side.answer for side in expected.sides]
    assert first["visual tokens"] == ["144 of 144", "72 of 144"]
    assert first["prefill FLOPs"] == ["100%", f"{expected.sides[1].flops_share:.0%}"]
    assert page.locator("#overlays img").count() == 2
    assert page.eval_on_selector("#entropy img", "image => image.naturalWidth") == 750
    page.fill("#question input, #question textarea", QUESTION.text)
    page.press("#question input, #question textarea", "Enter")
    asked = changed(page, first, "answer")
    assert asked["answer"][0] == pico.answer(pico.inputs(QUESTION.text, [SCENE.picture]))
    was = overlay(page)
    slide(page, "budget", 0.3)
    fewer = changed(page, asked, "visual tokens")
    assert 36 <= float(fewer["visual tokens"][1].split()[0]) < 60
    assert overlay(page) != was
    was = overlay(page)
    slide(page, "layer", 1 / 7)
    page.wait_for_selector("#answers p:has-text('After layer 1')")
    assert overlay(page) != was
    before = cells(page)
    for _ in range(20):
        page.press("#budget input[type=range]", "ArrowRight")
    page.get_by_role("button", name="Ask").click()  # keys move the slider, the button asks
    assert float(changed(page, before, "visual tokens")["visual tokens"][1].split()[0]) > 60


@needs_browser
def test_another_example_and_another_recipe(opened: Callable[..., Any]) -> None:
    page = opened()
    picture = page.get_attribute("#picture img", "src")
    page.get_by_text("read the digits").click()
    first = changed(page, cells(page), "answer")
    page.locator(".gallery-item img").nth(3).click()
    page.wait_for_selector(f"#picture img:not([src='{picture}'])")
    changed(page, first, "answer")
    choose(page, "Recipe", "pyramiddrop")
    page.wait_for_selector("#answers th:has-text('pyramiddrop')")
    assert page.locator("#overlays img").count() == 6
    assert page.is_disabled("#layer input[type=range]")
    choose(page, "Recipe", "fastv")
    page.wait_for_selector("#answers p:has-text('After layer 2, attention keeps 72 of 144')")
    choose(page, "Preset", "64")
    page.wait_for_selector("#answers th:has-text('fastv@64')")
    assert cells(page)["visual tokens"][1] == "63.75 of 144"


@needs_browser
def test_faults_are_said_beside_the_last_answer(opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(1280, 600)
    slide(page, "layer", 0.99)
    page.wait_for_selector("#answers p:has-text('After layer 7')")
    stands, drawn = cells(page), overlay(page)
    slide(page, "budget", 0.3)
    page.wait_for_selector("#said:has-text('smallest average is 88%. Ask for at least 88%')")
    asked = page.input_value("#budget input[type=number]")
    assert f"budget {asked}% cannot be reached" in page.inner_text("#said")  # the slider's number in the slider's unit
    assert page.evaluate("window.scrollY") > 0
    assert page.eval_on_selector("#said .message", SEEN)  # beside the slider, however far that is from the top
    assert (cells(page), overlay(page)) == (stands, drawn)
    assert page.locator("#answers.stale, #figures.stale").count() == 2
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    page.set_input_files("input[type=file]", tmp_path / "corrupt.png")
    page.wait_for_selector("#said:has-text('cannot read the picture corrupt.png')")
    assert "Traceback" not in page.content()
    assert str(Path("/tmp/gradio")) not in page.inner_text("#said")
    assert (cells(page), overlay(page)) == (stands, drawn)
    slide(page, "budget", 0.99)
    page.wait_for_selector("#answers:not(.stale) td:has-text('142.5 of 144'), #answers:not(.stale) td:text('144 of')")
    assert page.locator(".stale").count() == 0
    assert not page.is_visible("#said")


@needs_browser
def test_a_picture_of_ones_own_is_answered_at_once(opened: Callable[..., Any], pico: Loaded, tmp_path: Path) -> None:
    page = opened()
    page.get_by_text("read the digits").click()
    page.wait_for_selector("#answers caption:has-text('read the digits')")
    assert "The right answer is" in page.inner_text("#answers")
    other = next(islice(scenes.held_out(5), 2, None)).picture
    other.save(tmp_path / "mine.png")
    expected = web.compare(pico, other, "read the digits", "entropyprune")
    was, picture = overlay(page), page.get_attribute("#picture img", "src")
    page.set_input_files("input[type=file]", tmp_path / "mine.png")
    page.wait_for_function("old => document.querySelector('#overlays img').src !== old", arg=was)
    assert cells(page)["answer"] == [side.answer for side in expected.sides]
    assert page.get_attribute("#picture img", "src") != picture
    assert "right answer" not in page.inner_text("#answers")  # nobody knows it
    page.fill("#question textarea", "read the newspaper")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#answers p:has-text('does not know the words newspaper')")


@needs_browser
def test_a_file_that_is_too_large_is_said(opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened()
    (tmp_path / "large.png").write_bytes(bytes(11 << 20))
    page.set_input_files("input[type=file]", tmp_path / "large.png")
    page.wait_for_selector("text=exceed the maximum allowed size of 10.0 Mb")
    page.close()  # before Gradio asks how an upload goes on that it refused


@needs_browser
def test_a_phone_shows_answers_beside_what_they_depend_on(opened: Callable[..., Any]) -> None:
    page = opened(390, 844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    parts = ("#picture", "#question", "#answers table", "#layer", "#budget", "#overlays", "#entropy img")
    boxes = [page.locator(name).bounding_box() for name in parts]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)  # one below the other
    assert page.eval_on_selector("#answers .answer", SEEN)  # at once, without scrolling
    table, budget = boxes[2], boxes[4]
    assert budget["y"] + budget["height"] - table["y"] < 844  # on one screen
    slide(page, "layer", 0.99)
    page.wait_for_selector("#answers p:has-text('After layer 7')")
    slide(page, "budget", 0.3)
    page.wait_for_selector("#said .message")
    assert page.eval_on_selector("#said .message", SEEN)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_figure_follows_dark_mode(opened: Callable[..., Any], scheme: str) -> None:
    page = opened(color_scheme=scheme)
    page.wait_for_selector("#entropy img")
    pixels = np.asarray(Image.open(io.BytesIO(page.locator("#entropy img").screenshot())).convert("L")).astype(int)
    ground = int(np.median(pixels))
    assert ground > 240 if scheme == "light" else ground < 40
    assert np.abs(pixels - ground).max() > 150  # lines and words stand out
    body = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert abs(int(re.findall(r"\d+", body)[0]) - ground) < 40


@needs_browser
def test_it_says_what_pico_knows(opened: Callable[..., Any]) -> None:
    said = opened().inner_text("#about")
    for word in (*scenes.PLURAL.values(), *scenes.COLORS, "digits"):
        assert word in said
