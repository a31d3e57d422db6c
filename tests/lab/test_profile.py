"""`tokenprune profile`: entropies and spectra against float64, stability by seed, runs that go on after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import run
from families import DEPTH, FAMILIES, ONE, inputs, model
from PIL import Image
from spectra import explicit

import tokenprune
from tokenprune import Sample, ecl
from tokenprune.ecl import memory
from tokenprune.errors import LayerError
from tokenprune.lab import profile
from tokenprune.lab.horizon import probe
from tokenprune.lab.pico import scenes
from tokenprune.lab.profile import rows
from tokenprune.model.anatomy import Anatomy

LAYERS = [1, 3, 6]


def row(family: str) -> tuple[dict[str, Any], dict[str, list[torch.Tensor]]]:
    """A profile's row of the tiny model, and the visual states of every block seen by hooks of our own."""
    lm, given = model(family), inputs(family, ONE)
    anatomy = Anatomy.of(lm)
    adapter, visual = anatomy.adapter, anatomy.visual(given["input_ids"])
    seen: dict[str, list[torch.Tensor]] = {"queries": [], "keys": []}
    handles = [
        adapter.attention(block)
        .modules[state]
        .register_forward_hook(lambda module, args, out, s=state: seen[s].append(out[0][visual[0]]))
        for block in anatomy.blocks
        for state in seen
    ]
    with torch.no_grad():
        lm(**given)
    for handle in handles:
        handle.remove()
    before = [list(module._forward_hooks) for module in lm.modules()]
    found = profile.row(anatomy, Sample.of(lm, adapter, given), LAYERS)
    assert [list(module._forward_hooks) for module in lm.modules()] == before
    return found, seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_equals_the_explicit_computation(family: str) -> None:
    """Entropies, and eigenvalues by the smaller Gram matrix: tokens here, fewer than queries are wide."""
    found, seen = row(family)
    assert found["tokens"] == len(seen["queries"][0])
    for state, blocks in seen.items():
        assert found["entropy"][state] == pytest.approx([explicit(states) for states in blocks], abs=1e-4)
        assert list(found["spectra"][state]) == [str(layer) for layer in LAYERS]
        for layer in LAYERS:
            centred = blocks[layer - 1].double() - blocks[layer - 1].double().mean(0)
            unit = centred / centred.norm(dim=1, keepdim=True)
            wanted = torch.linalg.eigvalsh(unit.T @ unit / len(unit)).flip(0)
            values = torch.tensor(found["spectra"][state][str(layer)], dtype=torch.float64)
            assert torch.allclose(values, wanted[: len(values)], atol=1e-6)
            assert float(values.sum()) == pytest.approx(1, abs=1e-5)
            assert len(values) == min(unit.shape)
            assert values.diff().max() <= 0


CURVES = np.array([[5.0, 4.9, 2.0, 1.9], [5.0, 4.8, 2.1, 2.0], [5.0, 4.9, 2.2, 1.8], [5.0, 2.0, 1.9, 1.8]])


def test_the_stability_of_the_layer() -> None:
    found = profile.stability(CURVES, seed=0)
    layer = found["ecl"]
    assert layer["layer"] == ecl.collapse(CURVES.mean(0).tolist()).layer == 2
    assert layer["drop"] == pytest.approx(2.1)
    low, high = layer["drop_interval"]
    assert 0.5 < low < 2.1 < high < 2.9
    assert layer["prompts"] == {"1": 1, "2": 3}
    assert 0.7 < layer["share"] < 1  # samples that draw the odd prompt often give layer 1
    assert layer["interval"] == [1, 2]
    assert (np.array(found["interval"][0]) <= found["entropy"]).all()


def test_the_bootstrap_is_its_seed() -> None:
    assert profile.stability(CURVES, seed=3) == profile.stability(CURVES, seed=3)
    assert profile.stability(CURVES, seed=3) != profile.stability(CURVES, seed=4)


def test_prompts_that_agree_leave_no_doubt() -> None:
    found = profile.stability(np.repeat(CURVES[:1], 5, axis=0), seed=0)["ecl"]
    assert found["share"] == 1
    assert found["interval"] == [2, 2]
    assert found["drop_interval"] == pytest.approx([2.9, 2.9])


def test_one_block_cannot_collapse() -> None:
    with pytest.raises(LayerError, match="this model has 1"):
        profile.stability(np.ones((3, 1)), seed=0)


def test_spectra_of_unequal_prompts_are_averaged_by_rank() -> None:
    def one(values: list[float]) -> dict[str, Any]:
        same = {"queries": values, "keys": values}
        return {
            "tokens": len(values),
            "entropy": {state: [2.0, 1.0] for state in same},
            "spectra": {state: {"1": v} for state, v in same.items()},
        }

    found = profile.summary(iter([one([0.8, 0.2]), one([0.6, 0.3, 0.1])]), seed=0)
    assert found["states"]["keys"]["spectra"] == {"1": pytest.approx([0.7, 0.25, 0.05])}
    assert found["tokens"] == [2, 3]


@pytest.mark.parametrize(("depth", "layers"), [(32, [1, 2, 3, 8, 16, 24, 32]), (2, [1, 2]), (6, [1, 2, 3, 4, 6])])
def test_the_layers_shown_by_default(depth: int, layers: list[int]) -> None:
    assert profile.default_layers(depth) == layers


# -- the command -----------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Of all files that hold numbers."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json"))}


def command(capsys: pytest.CaptureFixture[str], output: Path, *more: str) -> tuple[int, str, str]:
    return run(capsys, "profile", "pico", "--limit", "3", "--seed", "1", "--output", str(output), *more)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts that were really measured; a negative number put in front kills the run when so many are."""
    count: list[int] = []
    measure = profile.row

    def counted(*args: Any) -> dict[str, Any]:
        if count and count[0] == -len(count):
            raise KeyboardInterrupt
        count.append(1)
        return measure(*args)

    monkeypatch.setattr(rows, "row", counted)
    return count


def test_a_killed_run_goes_on_and_ends_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, measured: list[int]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(capsys, whole)[0] == 0
    assert {path.name for path in whole.iterdir()} == {"rows", "profile.json", "entropy.png", "spectra.png"}
    for name in ("entropy", "spectra"):
        with Image.open(whole / f"{name}.png") as picture:
            assert picture.size[0] > 900
    measured[:] = [-3]
    code, _, err = command(capsys, cut)
    assert code == 130
    assert err.splitlines()[-1] == (
        f"interrupted: rows that are done stay in {cut}/rows, the same command goes on from there"
    )
    assert [path.name for path in cut.iterdir()] == ["rows"]
    first, second = sorted((cut / "rows").iterdir())
    assert json.loads(first.read_text())["row"]["tokens"] == 144
    second.write_text(second.read_text()[:-30])
    measured[:] = []
    assert command(capsys, cut)[0] == 0
    assert len(measured) == 2  # the one that was cut short, and the third
    assert content(cut) == content(whole)
    result = json.loads((cut / "profile.json").read_text())
    assert result["prompts"] == 3
    assert result["tokens"] == [144, 144]
    assert result["states"]["keys"]["spectra"]["8"][0] < 1
    assert str(tmp_path) not in (cut / "profile.json").read_text()


def test_the_line_it_prints_feeds_the_shipped_layers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = command(capsys, tmp_path / "out")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("for configs/ecl/: "))
    result = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert yaml.safe_load(line.removeprefix("for configs/ecl/: ")) == result["config"]
    (tmp_path / "ecl").mkdir()
    (tmp_path / "ecl" / "mine.yaml").write_text(line.removeprefix("for configs/ecl/: "))
    monkeypatch.setattr(memory, "configs", lambda: tmp_path)
    assert ecl.shipped("x/tokenprune-pico", 8) == result["states"]["queries"]["ecl"]["layer"]


def test_a_folder_keeps_its_order_and_more_pictures_measure_only_those(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, measured: list[int]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, scene in zip(range(4), scenes.held_out(5), strict=False):
        scene.picture.save(data / f"{i}.png")
    options = ("profile", "pico", "--data", str(data), "--layers", "2,1", "--output", str(tmp_path / "out"))
    assert run(capsys, *options, "--limit", "2")[0] == 0
    (data / "3.png").replace(data / "3.jpg")  # not read by its name
    assert run(capsys, *options, "--limit", "9")[0] == 0
    assert 4 <= len(measured) <= 5  # the one that was renamed may have been among the two
    result = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert result["prompts"] == 4
    assert list(result["states"]["queries"]["spectra"]) == ["1", "2"]


def test_rows_of_another_run_are_not_reused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command(capsys, tmp_path)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, _, err = command(capsys, tmp_path, "--seed", "2")
    assert code == 1
    assert "other settings (seed)" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


BAD = {
    "no folder": (("--data", "nonesuch"), 1, "got nonesuch"),
    "no pictures": (("--data", "empty"), 1, "holds no pictures"),
    "corrupt picture": (("--data", "corrupt"), 1, "bad.png"),
    "layer 0": (("--layers", "0"), 2, "from 1 to 8"),
    "words for layers": (("--layers", "1,two"), 2, "from 1 to 8"),
    "layer beyond the depth": (("--layers", "9"), 2, "from 1 to 8"),
    "output is a file": (("--output", "file"), 2, "file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_nothing_is_written(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "file").write_text("mine")
    arguments, expected, message = BAD[case]
    code, _, err = run(capsys, "profile", "pico", "--output", "out", *arguments)
    assert code == expected
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "profile.json").exists()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_two_at_once_end_with_the_numbers_of_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Real processes with one output folder; one of them measures in the other's rows."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert command(capsys, alone)[0] == 0
    code = "import sys, torch; torch.set_num_threads(1); from tokenprune.cli import main; main(sys.argv[1:])"
    arguments = ["profile", "pico", "--limit", "3", "--seed", "1", "--output", str(shared)]
    both = [
        subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [("error:" in process.communicate(timeout=300)[1], process.returncode) for process in both] == [
        (False, 0)
    ] * 2
    assert content(shared) == content(alone)
    assert {path.name for path in shared.iterdir()} == {"rows", "profile.json", "entropy.png", "spectra.png"}


def test_results_of_another_run_that_ended_meanwhile_stay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had begun in the same folder under other settings."""
    measure = profile.row

    def meanwhile(*args: Any) -> dict[str, Any]:
        (tmp_path / "profile.json").write_text('{"settings": {"seed": 7}}')
        return measure(*args)

    monkeypatch.setattr(rows, "row", meanwhile)
    code, _, err = command(capsys, tmp_path)
    assert code == 1
    assert "holds results of other settings (" in err
    assert json.loads((tmp_path / "profile.json").read_text()) == {"settings": {"seed": 7}}


@pytest.mark.parametrize(
    ("name", "figures"), [("profile", ["entropy", "spectra"]), ("horizon", ["horizon", "heatmaps"])]
)
def test_numbers_do_not_need_matplotlib(
    name: str,
    figures: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line says what is missing; with it, the same command draws from the rows that are there."""
    arguments = [name, "pico", "--limit", "1", "--output", str(tmp_path)]
    arguments += ["--layers", "5", "--window", "12"] if name == "horizon" else []
    (tmp_path / f"{figures[0]}.png").write_text("of older numbers")
    with monkeypatch.context() as without:
        for module in [module for module in sys.modules if module.split(".")[0] == "matplotlib"]:
            without.delitem(sys.modules, module)
        without.setitem(sys.modules, "matplotlib", None)
        code, out, err = run(capsys, *arguments)
    assert code == 0
    assert f"wrote {name}.json to {tmp_path}" in out
    (line,) = [line for line in err.splitlines() if "figures" in line]
    assert line.endswith("pip install matplotlib, and run the same command again")
    numbers = content(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rows", f"{name}.json"}
    monkeypatch.setattr({"profile": rows, "horizon": probe}[name], "row", lambda *args: pytest.fail("is there"))
    code, out, err = run(capsys, *arguments)
    assert (code, "figures" in err) == (0, False)
    assert content(tmp_path) == numbers
    for figure in figures:
        with Image.open(tmp_path / f"{figure}.png") as picture:
            assert picture.size[0] > 500


def test_depth_of_the_tiny_models() -> None:
    assert max(LAYERS) == DEPTH


@pytest.mark.parametrize("family", FAMILIES)
def test_a_profile_of_what_a_tower_pass_leaves(family: str) -> None:
    """The same as of the tokens that survive, looked up by hand in what the blocks computed."""
    lm, given = model(family), inputs(family, ONE)
    anatomy = Anatomy.of(lm)
    recipe = {"prune": [{"tower": "vision", "scorer": "random", "schedule": {"name": "fixed", "layer": 1, "keep": 6}}]}
    seen: list[torch.Tensor] = []
    handle = anatomy.blocks[2].self_attn.q_proj.register_forward_hook(lambda m, args, output: seen.append(output))
    try:
        with tokenprune.prune(lm, recipe) as pruning, torch.no_grad():
            left = Sample(lambda: lm(**given), lambda: pruning.state.entering_visual)
            found = profile.row(anatomy, left, LAYERS)
            state = pruning.state
    finally:
        handle.remove()
    assert state is not None
    columns = [i for i, at in enumerate(state.view_at(2).index[0].tolist()) if state.visual[0, at]]
    assert found["tokens"] == len(columns) == state.count_after_vision[0] < state.counts[0]
    assert found["entropy"]["queries"][2] == pytest.approx(explicit(seen[0][0, columns]), abs=1e-4)


def test_profile_with_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command(capsys, tmp_path / "thin", "--recipe", "random-in-tower")[0] == 0
    result = json.loads((tmp_path / "thin" / "profile.json").read_text())
    assert result["tokens"] == [48, 48]
    assert "after random-in-tower" in result["config"]["source"]
    code, _, err = command(capsys, tmp_path / "no", "--recipe", "entropyprune")
    assert code != 0
    assert "drops tokens in the decoder" in err
    assert not (tmp_path / "no").exists()
