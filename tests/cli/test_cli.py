"""The command line, in real processes and in-process: answers, exit codes, one message per error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import Stub, run
from PIL import Image

from tokenprune.cli import main
from tokenprune.lab import demo as demos
from tokenprune.lab.costs import spell
from tokenprune.lab.loading import PICO
from tokenprune.lab.pico import scenes
from tokenprune.registry import KINDS, registry

SCENE = next(iter(scenes.held_out(0)))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    SCENE.picture.save(path)
    return str(path)


def test_ls_names_everything_and_its_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "ls")
    assert code == 0
    for word in ("entropy", "pyramid", "nearest", "qwen2.5-vl", "divprune-random", "knorm", "tokenprune-knorm"):
        assert word in out


@pytest.mark.parametrize("columns", ["80", "100"])
def test_names_stay_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = run(capsys, "ls")[1] + run(capsys, "ls", "recipes")[1]
    assert max(map(len, out.splitlines())) <= int(columns)
    for word in ("divprune-random ", "divprune-random@192 ", "video-llava ", "tokenprune-knorm", "2503.02175"):
        assert word in out


def test_ls_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls", "mergers")
    assert code == 0
    assert "nearest" in out
    assert "entropy" not in out
    found = json.loads(run(capsys, "ls", "scorers", "--json")[1])
    assert list(found) == ["scorers"]
    entry = next(row for row in found["scorers"] if row["name"] == "knorm")
    assert (entry["settings"], entry["distribution"]) == ("order=2.0", "tokenprune-knorm")
    assert set(json.loads(run(capsys, "ls", "--json")[1])) == {f"{kind}s" for kind in KINDS}


def test_ls_recipes_puts_budgets_side_by_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = run(capsys, "ls", "recipes", "--shape", "llava-1.5-7b")
    assert code == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.strip()}
    assert lines["fastv@192"] == "L2: 166 191.6 39.4%"
    assert lines["pyramiddrop"] == "L8: 288, L16: 144, L24: 72 270.0 51.8%"
    rows = json.loads(run(capsys, "ls", "recipes", "--json")[1])
    assert {row["recipe"] for row in rows} >= {"fastv", "fastv@64", "divprune-random@192"}
    for row in (row for row in rows if "error" not in row):
        explained = json.loads(run(capsys, "explain", row["recipe"], "--json")[1])
        assert {"recipe": row["recipe"], **explained} == row


def test_ls_recipes_under_one_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """On NeXT's 2880 tokens; what cannot meet it says why, in its row."""
    arguments = ("ls", "recipes", "--shape", "llava-next-7b", "--budget", "1/4", "--json")
    rows = {row["recipe"]: row for row in json.loads(run(capsys, *arguments)[1])}
    assert "is 1350" in rows["vtw"].pop("error")
    averages = {name: row["average"] for name, row in rows.items() if "average" in row}
    assert len(averages) > 10
    assert averages == pytest.approx(dict.fromkeys(averages, 720), abs=0.5)


def test_a_long_plan_is_cut_short() -> None:
    plan = {str(layer): 100 - layer for layer in range(2, 32)}
    assert spell(plan) == "L2: 98, L3: 97 ... L31: 69 (30 stages)"


def test_check_warns_of_a_number_that_is_not_the_average(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "prune: [{scorer: random, schedule: {name: fixed, layer: 2, keep: 182}}]\n"
        "presets: {'192': [], '206': [], '64': [prune.0.schedule.average=4], '640': [prune.0.schedule.average=640]}\n"
    )
    code, out, err = run(capsys, "check", str(path))
    assert code == 0
    assert "fine" in out
    first, second = err.splitlines()
    assert f"{path}@192: promises 192 but averages 206.6 tokens over the layers (llava-1.5-7b" in first
    assert f"{path}@64: promises 64 but has no plan on llava-1.5-7b: average 4 cannot be reached" in second
    named = tmp_path / "named.yaml"
    named.write_text("name: '320'\nprune: [{scorer: random, schedule: {name: fixed, layer: 2, keep: 320}}]\n")
    code, _, err = run(capsys, "check", str(named))
    assert code == 0
    assert "promises 320 but averages 480.0 tokens over the layers (llava-next-7b, 2880" in err


def test_shipped_recipes_keep_their_promises(capsys: pytest.CaptureFixture[str]) -> None:
    ours = [name for name, entry in registry().entries["recipe"].items() if entry.distribution == "tokenprune-mllm"]
    assert run(capsys, "check", *ours)[2] == ""


def test_explain_with_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "pyramiddrop", "--budget", "192", "--json")
    assert code == 0
    assert json.loads(out)["plan"] == {"8": 110, "16": 55, "24": 27}
    assert json.loads(out)["average"] == 192


def test_show_prints_the_file_and_what_it_becomes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "presets:" in run(capsys, "show", "fastv")[1]
    code, out, _ = run(capsys, "show", "fastv@128", "prune.0.scorer.queries=text")
    assert code == 0
    assert "average: 128" in out
    assert "queries: text" in out


def test_what_show_prints_is_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(run(capsys, "show", "pyramiddrop", "prune.0.schedule.ratio=0.25")[1])
    assert run(capsys, "check", str(path))[0] == 0


def test_check_says_all_faults_of_all_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "prune:\n  - {scorer: entropi, schedule: {name: fixed, layr: 2, keep: [4]}}\n  - {scorer: random}\n"
    )
    code, out, err = run(capsys, "check", "fastv", str(path), "nonesuch")
    assert code == 1
    assert "fastv: fine" in out
    for part in (
        "did you mean 'entropy'",
        "prune.0.schedule.layr",
        "prune.0.schedule.keep",
        "prune.1.schedule",
        "nonesuch",
    ):
        assert part in err


def test_explain_is_table_5(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "explain", "entropyprune", "--shape", "llava-1.5-7b", "--text", "96", "--visual", "576",
        "prune.0.schedule.average=192", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert result["plan"] == {"2": 166}
    assert result["flops_share"] == pytest.approx(0.422, abs=5e-4)
    assert result["kv_mib"]["full"] == 288.0
    assert result["kv_mib"]["pruned"] == pytest.approx(95.8, abs=0.05)


@pytest.mark.parametrize("shape", ["llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b"])
def test_explain_knows_the_shipped_layers(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    code, out, _ = run(capsys, "explain", "random", "--shape", shape)
    assert code == 0
    assert "average" in out


def test_explain_asks_for_an_unknown_layer(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "explain", "random", "--shape", "video-llava-7b")
    assert code == 2
    assert "--ecl" in err
    assert run(capsys, "explain", "random", "--shape", "video-llava-7b", "--ecl", "2")[0] == 0


def test_generate_answers_and_reports(capsys: pytest.CaptureFixture[str], picture: str, tmp_path: Path) -> None:
    overlay, report = tmp_path / "overlay.png", tmp_path / "report.html"
    code, out, err = run(
        capsys, "generate", "pico", "--image", picture, "--prompt", "read the digits", "-r", "fastv",
        "prune.0.schedule.keep=48", "--overlay", str(overlay), "--report", str(report),
    )  # fmt: skip
    assert code == 0
    assert out.strip()
    assert "48/144" in err
    dark = np.asarray(Image.open(overlay).convert("RGB")).astype(int)
    original = np.asarray(SCENE.picture.convert("RGB")).astype(int)
    patches = np.abs(dark - original).sum(-1).reshape(12, 8, 12, 8).sum((1, 3))
    assert (patches == 0).sum() == 48  # kept patches are untouched, exactly on the grid
    page = report.read_text()
    assert "<td>48/144</td>" in page
    assert re.findall("<dd.*?>(.*?)</dd>", page) == ["read the digits", out.strip()]
    assert "model tokenprune-pico (llava, float32 on cpu)" in page


@pytest.mark.parametrize(
    ("family", "kinds"),
    [("llava_next", "image"), ("qwen2_5_vl", "image"), ("qwen2_5_vl", "video"), ("video_llava", "both")],
)
def test_overlays_and_reports_of_every_family(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kinds: str
) -> None:
    monkeypatch.setattr("tokenprune.lab.loading.load_model", lambda *_: Stub(family))
    folder, still = tmp_path / "video", tmp_path / "still.png"
    folder.mkdir()
    SCENE.picture.resize((96, 64)).save(still)
    for i in range(4):
        SCENE.picture.resize((96, 64)).save(folder / f"{i}.png")
    media = [*(["--image", str(still)] * (kinds != "video")), *(["--video", str(folder)] * (kinds != "image"))]
    overlay, report = tmp_path / "overlay.png", tmp_path / "report.html"
    code, _, err = run(
        capsys, "generate", family, *media, "--frames", "4", "--prompt", "x", "-r", "fastv", "--overlay", str(overlay),
        "--report", str(report),
    )  # fmt: skip
    assert code == 0, err
    assert report.read_text().count("<img") == (6 if kinds == "both" else 3)
    with Image.open(overlay) as drawn:
        assert drawn.size == ((2 if family == "llava_next" or kinds == "video" else 1) * 100 - 4, 64)


def test_an_overlay_that_cannot_be_written(capsys: pytest.CaptureFixture[str], picture: str, tmp_path: Path) -> None:
    """Before the model is asked."""
    (tmp_path / "file").write_text("mine")
    for name, message in (("file/o.png", "file is no folder"), ("o.txt", "cannot write the picture")):
        code, out, err = run(
            capsys, "generate", "pico", "--image", picture, "--prompt", "x", "-r", "fastv", "--overlay",
            str(tmp_path / name),
        )  # fmt: skip
        assert (code, err.count("error: cannot write ")) == (1, 1)
        assert message in err
        assert not out


def test_an_overlay_makes_its_folder(capsys: pytest.CaptureFixture[str], picture: str, tmp_path: Path) -> None:
    overlay = tmp_path / "new" / "o.png"
    arguments = ("generate", "pico", "--image", picture, "--prompt", "x", "-r", "fastv", "--overlay", str(overlay))
    code, out, _ = run(capsys, *arguments)
    assert (code, bool(out)) == (0, True)
    with Image.open(overlay) as drawn:
        assert drawn.format == "PNG"


def test_generate_and_explain_agree_on_a_budget(capsys: pytest.CaptureFixture[str], picture: str) -> None:
    _, _, err = run(
        capsys, "generate", "pico", "--image", picture, "--prompt", "read the digits", "-r", "pyramiddrop",
        "--budget", "1/2",
    )  # fmt: skip
    explained = run(
        capsys, "explain", "pyramiddrop", "--shape", str(PICO), "--visual", "144", "--budget", "1/2", "--json"
    )
    result = json.loads(explained[1])
    assert result["average"] == pytest.approx(72, abs=0.5)
    assert f"average over the layers {result['average']:.1f}\n" in err
    for kept in result["plan"].values():
        assert f"{kept}/144" in err


@pytest.mark.parametrize("model", ["pico", str(PICO)])
def test_without_a_recipe_nothing_is_pruned(capsys: pytest.CaptureFixture[str], picture: str, model: str) -> None:
    """By name or as a local folder; the answer is right, and alone on stdout."""
    code, out, err = run(capsys, "generate", model, "--image", picture, "--prompt", "read the digits")
    assert (code, err) == (0, "")
    assert out.strip() == next(q.answer for q in SCENE.questions if q.kind == "read")


BAD_USAGE = {
    "unknown recipe": (("generate", "pico", "--prompt", "x", "-r", "entropypune"), "did you mean 'entropyprune'"),
    "unknown scorer": (("explain", "fastv", "prune.0.scorer.name=entrpy"), "did you mean 'entropy'"),
    "unknown preset": (("explain", "fastv@1920"), "did you mean '192'"),
    "layer beyond the depth": (("explain", "entropy-at-5", "prune.0.schedule.layer=99"), "32 blocks"),
    "unreachable average": (("explain", "entropyprune", "prune.0.schedule.average=10"), "smallest average is 36"),
    "missing picture": (("generate", "pico", "--image", "nope.png", "--prompt", "x"), "nope.png"),
    "missing prompt": (("generate", "pico"), "--prompt"),
    "overlay without a recipe": (("generate", "pico", "--prompt", "x", "--overlay", "o.png"), "overlay needs"),
    "report without a recipe": (("generate", "pico", "--prompt", "x", "--report", "r.html"), "report needs"),
    "settings without a recipe": (("generate", "pico", "a.b=1", "--prompt", "x"), "need a recipe"),
    "unreachable budget": (("explain", "pyramiddrop", "--budget", "64"), "smallest average is 144"),
    "budget without meaning": (("explain", "fastv", "--budget", "-1/3"), "got '-1/3'"),
    "budget without a recipe": (("generate", "pico", "--prompt", "x", "--budget", "1/3"), "needs a recipe"),
    "budget of nothing that has one": (("ls", "scorers", "--budget", "1/3"), "ls recipes"),
    "unknown kind": (("ls", "recipe"), "did you mean 'recipes'"),
    "unknown shape": (("explain", "fastv", "--shape", "llava-1.5-8b"), "did you mean 'llava-1.5-7b'"),
    "bad override": (("explain", "fastv", "prune.0.schedule"), "path=value"),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, message = BAD_USAGE[case]
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err


def test_a_corrupt_picture_is_a_failed_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "corrupt.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    code, _, err = run(capsys, "generate", "pico", "--image", str(path), "--prompt", "x")
    assert code == 1
    assert "corrupt.png" in err
    assert err.count("\n") == 1


def test_a_model_that_is_not_there_is_a_failed_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "generate", str(tmp_path), "--prompt", "x")
    assert code == 1
    assert "cannot load the model" in err


def test_debug_shows_the_traceback() -> None:
    from tokenprune.errors import UnknownNameError

    with pytest.raises(UnknownNameError):
        main(["show", "nonesuch", "--debug"])


def test_calibrate_measures_and_remembers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, scene in zip(range(2), scenes.held_out(1), strict=False):
        scene.picture.save(folder / f"{i}.png")
    out_file = tmp_path / "ecl.yaml"
    code, out, _ = run(capsys, "calibrate", "pico", "--images", str(folder), "--output", str(out_file))
    assert code == 0
    words = " ".join(out.split())
    assert re.search(
        r"no collapse found, entropy drops most after layer \d of 8, by -?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", words
    )
    assert "it takes the place of the shipped layer 2" in words
    assert "ECL" not in out
    entry = yaml.safe_load(out_file.read_text())
    assert (entry["depth"], entry["collapse"]) == (8, False)
    assert len(list((tmp_path / "cache" / "ecl").glob("*.json"))) == 1


@pytest.mark.parametrize("method", ["vtw", "fitprune"])
def test_calibrate_fits_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path, method: str) -> None:
    out_file = tmp_path / "mine.yaml"
    settings = {"vtw": ["eta=1000", "first=2"], "fitprune": ["reduction=0.5"]}[method]
    arguments = ["calibrate", "pico", *settings, "--method", method, "--limit", "2", "--output", str(out_file)]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert out_file.read_text() == out
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mine.yaml"]
    code, out, _ = run(capsys, "check", str(out_file))
    assert code == 0
    if method == "vtw":
        assert "layer: 2" in out_file.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "vwt"], "did you mean 'vtw'"),
        (["eta=1"], "ecl has no settings"),
        (["teta=1", "--method", "vtw"], "vtw has eta, first"),
        (["eta=much", "--method", "vtw"], "calibration 'vtw'"),
        (["eta=0", "--method", "vtw", "--limit", "1"], "no layer comes within"),
    ],
)
def test_calibrations_that_cannot_be(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, _, err = run(capsys, "calibrate", "pico", *arguments)
    assert code in (1, 2)
    assert said in " ".join(err.replace("│", " ").split())


def test_a_folder_without_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "calibrate", "pico", "--images", str(tmp_path))
    assert code == 1
    assert "no pictures" in err


def test_demo_in_an_empty_folder(tmp_path: Path) -> None:
    """A real process, from the console script, in a folder of its own."""
    script = Path(sys.executable).parent / "tokenprune"
    done = subprocess.run([script, "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kinds = [line.partition(":")[0] for line in done.stdout.splitlines() if re.match(r"\w+: .*\(.+\)$", line.strip())]
    assert kinds == list(scenes.KINDS)
    for name in ("unpruned", *demos.RECIPES):
        rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == [name]]
        assert len(rows) == 6  # an answer of each kind, and the cost
        assert float(rows[5][1]) == pytest.approx(144 if name == "unpruned" else 48, abs=0.5)
        assert all(row[-1] in ("yes", "NO") for row in rows[:5])
    words = " ".join(done.stdout.split())
    assert "layers and does not collapse (its steepest drop: " in words
    assert "nothing to hold on to here" in words
    with Image.open(tmp_path / "demo" / "overlay.png") as overlay:
        assert overlay.size[0] > overlay.size[1]
    report = (tmp_path / "demo" / "report.html").read_text()
    assert report.count("<img") == 3
    assert f'<dd class="question">{SCENE.questions[-1].text}</dd>' in report


def test_demo_with_nothing_to_drop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "all.yaml"
    recipe.write_text("name: all\nprune: [{scorer: random, schedule: {name: fixed, layer: 2, keep: 1.0}}]\n")
    code, out, _ = run(capsys, "demo", "-r", str(recipe), "--output", str(tmp_path / "out"))
    assert code == 0
    assert "survived" not in out
    assert not (tmp_path / "out" / "overlay.png").exists()


def test_demo_tells_of_a_collapse_where_there_is_one() -> None:
    assert "collapses: layer 2 of 4, drop 4.0000 nats" in demos.tell([5.0, 5.0, 1.0, 1.0])
    assert "goes from 1.00 to 2.00 nats over the 3 layers and does not collapse" in demos.tell([1.0, 1.5, 2.0])


@pytest.mark.slow
def test_demo_takes_a_picture(capsys: pytest.CaptureFixture[str], picture: str, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "demo", "--image", picture, "--output", str(tmp_path / "out"), "-r", "random")
    assert code == 0
    assert "L2: 48" in out  # the recipe's own keep
    assert "fastv" not in out
    code, budgeted, _ = run(capsys, "demo", "--image", picture, "--output", str(tmp_path / "out"), "--budget", "1/2")
    assert code == 0
    assert "L2: 48" in budgeted  # (2 * 144 + 6 * 48) / 8 = 72
    assert re.search(r"entropyprune +72\.0 ", budgeted)
    assert (tmp_path / "out" / "overlay.png").exists()
