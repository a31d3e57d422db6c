"""`tokenprune bench`: FLOPs by formula and by count, phases, scoring, random weights. Nothing depends on a clock."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from families import BATCHES, FAMILIES, MIXED, RAGGED, has_video, inputs, model
from PIL import Image

import tokenprune
from tokenprune.errors import LayerError, TokenpruneError, UnknownNameError
from tokenprune.lab import plots
from tokenprune.lab import random_models as shapes
from tokenprune.lab.bench import HEADER, UNPRUNED, Bench, Flops, Measured, Run, Stopwatch, table, told, watched
from tokenprune.lab.loading import encode, load_model, without_pixels
from tokenprune.lab.pico.scenes import held_out
from tokenprune.plan.cost import DecoderSize
from tokenprune.plan.shapes import PUBLISHED
from tokenprune.recipe import load

ENTROPY = {"name": "entropy", "prune": [{"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 0.3}}]}
STEPS = {
    "name": "steps",
    "prune": [
        {
            "scorer": {"name": "attention", "block": "next"},
            "schedule": {"name": "pyramid", "layers": [1, 3], "ratio": 0.5},
        }
    ],
}


@pytest.fixture(scope="module", params=FAMILIES)
def measured(request: pytest.FixtureRequest) -> tuple[Bench, list[Measured]]:
    """Nothing pruned and two recipes, on the tiny model of each family."""
    bench = Bench(model(request.param), inputs(request.param, BATCHES["one"]), new_tokens=3)
    return bench, bench.measure([ENTROPY, STEPS], runs=1)


def test_the_formula_is_what_torch_counts(measured: tuple[Bench, list[Measured]]) -> None:
    """Within 2 %, without and with pruning."""
    _, found = measured
    assert [one.name for one in found] == [UNPRUNED, "entropy", "steps"]
    for one in found:
        assert one.flops.counted == pytest.approx(one.flops.formula, rel=0.02)
    assert found[1].flops.counted < 0.9 * found[0].flops.counted
    assert found[0].flops.scoring == 0 < min(one.flops.scoring for one in found[1:])
    assert {one.flops.tower for one in found} == {found[0].flops.tower}
    assert found[0].flops.tower > 0


def test_a_wrong_plan_would_be_noticed(measured: tuple[Bench, list[Measured]]) -> None:
    bench, (_, entropy, _) = measured
    wrong = bench.geometry.prefill_flops({3: entropy.plan[2]}, bench.visual, bench.text)
    assert wrong != pytest.approx(entropy.flops.counted, rel=0.02)


def test_plans_tokens_cache_and_bound(measured: tuple[Bench, list[Measured]]) -> None:
    bench, (whole, entropy, steps) = measured
    assert whole.plan == {}
    assert list(entropy.plan) == [2]
    assert list(steps.plan) == [1, 3]
    geometry, n = bench.geometry, bench.visual
    for one in (whole, entropy, steps):
        assert one.average == pytest.approx(sum(geometry.tokens(one.plan, n)) / geometry.depth)
        text = geometry.kv_mib({}, 1, 4) * bench.text
        assert one.median("kv_mib") == pytest.approx(geometry.kv_mib(one.plan, n, 4) + text)
        assert one.bound == whole.flops.formula / one.flops.formula
        assert one.spread["peak_mib"] is None  # no GPU
        assert 0 <= one.scoring_share < 1
    assert whole.speed_up == whole.bound == 1 < entropy.bound


def test_phases_add_up(measured: tuple[Bench, list[Measured]]) -> None:
    one = measured[0].run()
    assert one.total_ms == pytest.approx(one.tower_ms + one.prefill_ms + 2 * one.decode_ms_per_token)
    assert min(one.tower_ms, one.prefill_ms, one.decode_ms_per_token) > 0


def test_the_table_has_a_cell_for_every_column(measured: tuple[Bench, list[Measured]]) -> None:
    lines = table(measured[1])
    assert {len(line) for line in lines} == {len(HEADER)}
    assert lines[0][HEADER.index("peak MiB")] == "n/a"


def test_runs_are_interleaved_and_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round starts with another form, and its numbers are compared within the round."""
    bench, order = Bench(model("llava"), inputs("llava", BATCHES["one"])), []

    def run(self: Bench, pruning: Any = None, new_tokens: int | None = None) -> Run:
        if new_tokens is None:
            order.append("random" if pruning is not None else UNPRUNED)
        at = len(order)
        prefill = (1000.0 if at < 3 else 10.0 * at) / (2 if pruning is not None else 1)
        if at < 3 and pruning is not None:
            with torch.no_grad(), pruning:
                self.model(**self.inputs)
        return Run(1, prefill, 1, prefill + 17, 1, None)

    monkeypatch.setattr(Bench, "run", run)
    recipe = {"name": "random", "prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 4}}]}
    whole, pruned = bench.measure([recipe], runs=2)
    assert order == [UNPRUNED, "random", "random", UNPRUNED, UNPRUNED, "random"]
    assert whole.median("prefill_ms") == 45  # of 40 and 50
    assert pruned.median("prefill_ms") == 22.5  # of 15 and 30
    assert pruned.speed_up == pytest.approx((40 / 15 + 50 / 30) / 2)


def test_watching_changes_nothing_and_sees_every_scorer() -> None:
    lm, given, seen, found = model("llava"), inputs("llava", RAGGED), [], []
    watch = Stopwatch(lambda: seen.append(1))
    for recipe in (load(STEPS), watched(load(STEPS), watch)):
        assert not seen
        with torch.no_grad(), tokenprune.prune(lm, recipe) as pruning:
            logits = lm(**given).logits
        assert pruning.state is not None
        found.append([logits, *(view.index for view in pruning.state.views.values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(seen) == 2 * 2 * 2  # before and after, two stages, two prompts with pictures


@pytest.mark.parametrize("recipe", ["cdpruner", "visionzip"])
def test_recipes_that_read_the_tower_and_the_question_are_measured(recipe: str) -> None:
    pico = load_model("pico")
    scene = next(held_out(0))
    bench = Bench(pico.model, pico.inputs(scene.questions[0].text, [scene.picture]), 2, pico.processor)
    whole, pruned = bench.measure([recipe], runs=1, budget="1/3")
    assert pruned.average == pytest.approx(48, abs=0.5)
    assert pruned.flops.counted == pytest.approx(pruned.flops.formula, rel=0.02)
    assert pruned.flops.counted < whole.flops.counted


def test_the_layer_may_be_said() -> None:
    recipe = told(load("entropyprune"), {"ecl": 4})
    with torch.no_grad(), tokenprune.prune(model("llava"), recipe) as pruning:
        model("llava")(**inputs("llava", BATCHES["one"]))
    assert [stage.layer for stage in pruning.report().stages] == [4]
    assert recipe.passes[0].scorer == load("entropyprune").passes[0].scorer


def test_only_one_prompt_and_answers_of_two_tokens() -> None:
    with pytest.raises(TokenpruneError, match="one prompt, got 2"):
        Bench(model("llava"), inputs("llava", BATCHES["padded"]))
    with pytest.raises(TokenpruneError, match="two new tokens or more, got 1"):
        Bench(model("llava"), inputs("llava", BATCHES["one"]), new_tokens=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_apart_changes_no_answer(family: str) -> None:
    """Pictures and videos, padded rows, pruned."""
    lm, given = model(family), inputs(family, MIXED if has_video(family) else RAGGED)
    with torch.no_grad(), tokenprune.prune(lm, ENTROPY):
        whole = lm.generate(**given, max_new_tokens=4, do_sample=False)
        apart = lm.generate(**without_pixels(given), **encode(lm, given), max_new_tokens=4, do_sample=False)
    assert torch.equal(whole, apart)


# -- shapes of random weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shapes.NAMES)
def test_random_shapes_are_the_published_ones(name: str) -> None:
    assert DecoderSize.of(shapes.config(name)) == replace(PUBLISHED[name], pictures=1, cls=0)  # no config says those


VISUAL = {"llava-1.5-7b": 576, "llava-next-7b": 2928, "video-llava-7b": 2056, "qwen2.5-vl-7b": 576}


@pytest.mark.parametrize("name", shapes.NAMES)
def test_a_scaled_model_reads_its_prompt(name: str) -> None:
    """An eighth of the heads keeps their size and divides evenly; the prompt has the family's visual tokens."""
    small = shapes.scaled(PUBLISHED[name], Fraction(1, 8))
    assert small.heads % small.kv_heads == 0
    assert (small.head_size, small.depth) == (128, 4)
    lm = shapes.build(name, Fraction(1, 64), torch.float32, "cpu")
    bench = Bench(lm, shapes.prompt(name, lm, 10), new_tokens=2)
    assert (bench.visual, bench.text) == (VISUAL[name], 10)
    again = shapes.build(name, Fraction(1, 64), torch.float32, "cpu")
    assert torch.equal(next(lm.parameters()), next(again.parameters()))


def test_what_no_shape_is() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'llava-1\.5-7b'"):
        shapes.check("llava-1.5-7bb", "1")
    for scale in ("0", "2", "1/0", "half"):
        with pytest.raises(TokenpruneError, match=f"such as 1/8, got {scale}"):
            shapes.check("llava-1.5-7b", scale)
    assert shapes.check("llava-1.5-7b", "1/8") == Fraction(1, 8)
    assert shapes.collapse_layer("llava-1.5-7b", Fraction(1)) == 2
    with pytest.raises(LayerError, match="--ecl"):
        shapes.collapse_layer("video-llava-7b", Fraction(1))


# -- the command -----------------------------------------------------------------------------------------------------


def test_bench_writes_numbers_a_page_and_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(
        capsys, "bench", "--random-init", "llava-1.5-7b", "--scale", "1/64", "-r", "fastv", "-r", "entropyprune",
        "--budget", "1/2", "--runs", "1", "--new-tokens", "2", "--output", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in found["rows"]] == [UNPRUNED, "fastv", "entropyprune"]
    assert found["settings"]["visual tokens"] == 576
    assert [row["average"] for row in found["rows"]] == [576, 288, 288]
    assert list(found["rows"][2]["plan"]) == ["1"]  # the shipped layer, scaled
    for row in found["rows"]:
        flops = Flops(**row["flops"])
        assert flops.counted == pytest.approx(flops.formula, rel=0.02)
    assert "| entropyprune | 288.0 |" in (tmp_path / "bench.md").read_text()
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.size[0] > 1000
    assert str(tmp_path / "bench.png") in out


BAD = {
    "no model": (("-r", "fastv"), "a model or --random-init"),
    "two models": (("pico", "--random-init", "llava-1.5-7b", "-r", "fastv"), "one of them"),
    "no recipe": (("pico",), "--recipe"),
    "unknown shape": (("--random-init", "llava-1.5-8b", "-r", "fastv"), "did you mean 'llava-1.5-7b'"),
    "layer not known": (("--random-init", "video-llava-7b", "--scale", "1/64", "-r", "random"), "--ecl"),
    "no budget": (("pico", "-r", "fastv", "--budget", "lots"), "lots"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_usage(capsys: pytest.CaptureFixture[str], case: str, tmp_path: Path) -> None:
    arguments, message = BAD[case]
    code, _, err = run(capsys, "bench", *arguments, "--output", str(tmp_path))
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_numbers_do_not_need_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line says what is missing, and a picture of older numbers does not stay beside new ones."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    few = {
        "bench": (("pico", "--runs", "1", "--new-tokens", "2"), {"bench.json", "bench.md"}, "bench.png"),
        "sweep": (("--limit", "1"), {"sweep.json", "sweep.csv", "sweep.md", "rows"}, "accuracy-flops.png"),
    }
    for command, (options, written, figure) in few.items():
        output = tmp_path / command
        output.mkdir()
        (output / figure).write_text("of older numbers")
        code, out, err = run(capsys, command, *options, "-r", "fastv", "--output", str(output))
        assert code == 0
        assert {path.name for path in output.iterdir()} == written
        assert figure not in out
        (line,) = [line for line in err.splitlines() if "figures" in line]
        assert line.endswith("pip install matplotlib, and run the same command again")


def test_many_lines_stay_apart() -> None:
    """More lines than colours differ in their markers."""
    points = {f"recipe {i}": [(1.0, float(i)), (2.0, float(i))] for i in range(2 * len(plots.COLORS))}
    assert plots.lines(points, ("x", "y"), "title")[1:4] == b"PNG"
    styles = {(i % len(plots.COLORS), (i + i // len(plots.COLORS)) % len(plots.MARKERS)) for i in range(len(points))}
    assert len(styles) == len(points)
