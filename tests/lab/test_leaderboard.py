"""benchmarks/pico/leaderboard.py: cells that are measured once, intervals, marks and the page."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenprune.lab.loading import load_model
from tokenprune.lab.pico.scenes import KINDS
from tokenprune.lab.pico.task import Task
from tokenprune.registry import registry

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("leaderboard", ROOT / "benchmarks" / "pico" / "leaderboard.py")
assert SPEC is not None
assert SPEC.loader is not None
leaderboard: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(leaderboard)


def cell(recipe: str | None, share: float, seed: int = 0, scenes: int = 400) -> dict[str, Any]:
    """Answers that are right by chance."""
    rng = np.random.default_rng(seed)
    right = {kind: "".join(map(str, (rng.random(scenes) < share).astype(int))) for kind in KINDS}
    cost = {"layers": [2], "average": 48.0, "flops_share": 0.4}
    return {"recipe": recipe, "budget": recipe and "1/3", **cost, "right": right}


CELLS = [
    cell(None, 1.0),
    cell("random", 0.8, 1),
    cell("better", 0.9, 2),
    cell("worse", 0.7, 3),
    {**cell("same", 0.8, 1), "recipe": "same"},
    {"recipe": "late", "budget": "1/3", "unreachable": "the first 5 of 8 blocks see all"},
    {"recipe": "broken", "budget": "1/3", "failed": "no tower here"},
]
SETTINGS = {"model": "pico", "limit": 400, "seed": 31, "budgets": ["1/3"], "samples": leaderboard.SAMPLES}


def test_shares_and_intervals() -> None:
    result = leaderboard.summary(CELLS, SETTINGS)
    found = {row["recipe"]: row for row in result["cells"]}
    assert result["unpruned"]["accuracy"]["all"] == 1
    kept = found["random"]["kept"]["all"]
    assert kept["value"] == found["random"]["accuracy"]["all"]
    assert kept["low"] < kept["value"] < kept["high"]
    # the mean of five kinds, 400 scenes each: a standard error of sqrt(0.8 * 0.2 / 2000)
    assert kept["high"] - kept["low"] == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 2000) ** 0.5, rel=0.15)
    one = found["random"]["kept"]["read"]
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 400) ** 0.5, rel=0.15)


def test_recipes_worse_than_random_are_marked() -> None:
    found = {row["recipe"]: row for row in leaderboard.summary(CELLS, SETTINGS)["cells"]}
    assert found["worse"]["worse_than_random"]
    assert not found["better"]["worse_than_random"]
    assert "against_random" not in found["random"]
    assert found["same"]["against_random"] == {"value": 0, "low": 0, "high": 0}  # paired: the same answers
    page = leaderboard.page(leaderboard.summary(CELLS, SETTINGS))
    assert "| `worse` | ▼ worse than random |" in page
    assert "| `better` | ▲ |" in page
    assert "| `same` |  |" in page


def test_tower_recipes_are_held_against_random_tokens_in_the_tower() -> None:
    inside = [
        {**cell(name, share, seed), "layers": [-3, -1]}
        for name, share, seed in (("random-in-tower", 0.5, 4), ("tome", 0.6, 5), ("worst", 0.3, 6))
    ]
    found = {row["recipe"]: row for row in leaderboard.summary([*CELLS, *inside], SETTINGS)["cells"]}
    assert not found["tome"]["worse_than_random"]
    assert found["tome"]["against_random"]["low"] > 0
    assert found["worst"]["worse_than_random"]
    assert "against_random" not in found["random-in-tower"]
    assert found["worse"]["against_random"] == leaderboard.summary(CELLS, SETTINGS)["cells"][2]["against_random"]
    assert "| tower |" in leaderboard.page(leaderboard.summary([*CELLS, *inside], SETTINGS))


def test_the_page_is_in_order_and_says_what_is_missing() -> None:
    page = leaderboard.page(leaderboard.summary(CELLS, SETTINGS))
    names = [line.split("|")[1].strip(" *`") for line in page.splitlines() if line.startswith(("| `", "| **"))]
    assert names == ["better", "random", "same", "worse"]
    assert "Cannot reach this budget:\n\n- `late`: the first 5" in page
    assert "Could not be run:\n\n- `broken`: no tower here" in page
    assert "What it cannot say" in page
    assert max(len(line) for line in page.splitlines() if not line.startswith(("|", "- "))) <= 120


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again = (leaderboard.summary(CELLS, SETTINGS) for _ in range(2))
    assert first == again
    assert leaderboard.summary(CELLS, {**SETTINGS, "seed": 32})["cells"] != first["cells"]


def test_random_is_always_a_row() -> None:
    """Its own layer is too late for a ninth: it drops earlier. Others say that they cannot."""
    task = Task(load_model("pico"), limit=2, seed=31)
    measured = leaderboard.measure(task, "random", "1/9")
    assert measured["layers"] == [0]
    assert measured["average"] == 16
    assert {len(bits) for bits in measured["right"].values()} == {2}
    assert "smallest average is 36" in leaderboard.measure(task, "fastv", "1/9")["unreachable"]


def test_a_second_run_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"--json": tmp_path / "out.json", "--page": tmp_path / "page.md", "--cells": tmp_path / "cells"}
    where = [str(part) for pair in files.items() for part in pair]
    arguments = ["--recipes", "fastv", "--budgets", "1/2", "1/9", "--limit", "3", "--threads", "1", *where]
    leaderboard.main(arguments)
    assert "5 of 5 cells measured now" in capsys.readouterr().out
    content = [files[name].read_bytes() for name in ("--json", "--page")]
    (gone,) = files["--cells"].glob("fastv-1of2-*")
    gone.unlink()
    leaderboard.main(arguments)
    assert "1 of 5 cells measured now" in capsys.readouterr().out
    assert [files[name].read_bytes() for name in ("--json", "--page")] == content
    monkeypatch.setattr(leaderboard, "load_model", lambda name: pytest.fail("nothing is missing"))
    leaderboard.main(arguments)
    assert [files[name].read_bytes() for name in ("--json", "--page")] == content
    rows = json.loads(content[0])["cells"]
    assert [(row["recipe"], row["budget"]) for row in rows] == [
        ("fastv", "1/2"), ("fastv", "1/9"), ("random", "1/2"), ("random", "1/9"),
    ]  # fmt: skip


def test_rows_of_the_json_stay_and_others_join_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has the JSON and no cells: only what it lacks is measured, and what that is held against."""
    known = ["fastv", "random", "random-in-tower"]
    entries = registry().entries["recipe"]
    monkeypatch.setitem(registry().entries, "recipe", {name: entries[name] for name in known})  # type: ignore[arg-type]
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    arguments = ["--budgets", "1/2", "--limit", "3", "--threads", "1", "--json", str(out), "--page", str(page)]
    leaderboard.main([*arguments, "--cells", str(tmp_path / "one")])
    assert "4 of 4 cells measured now" in capsys.readouterr().out
    before = json.loads(out.read_text())
    before["cells"][0]["accuracy"]["all"] = 0.123  # not measured again
    out.write_text(json.dumps(before))
    leaderboard.main([*arguments, "--cells", str(tmp_path / "none")])
    assert "0 of 4 cells measured now" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert json.loads(out.read_text()) == before

    registry().entries["recipe"]["tome"] = entries["tome"]
    leaderboard.main([*arguments, "--cells", str(tmp_path / "two")])
    assert "4 of 5 cells measured now" in capsys.readouterr().out
    after = json.loads(out.read_text())
    assert after["cells"][:3] == before["cells"]
    assert after["cells"][3]["recipe"] == "tome"
    assert "against_random" in after["cells"][3]
    assert "`tome`" in page.read_text()

    leaderboard.main([*arguments, "--cells", str(tmp_path / "two"), "--recipes", "fastv"])  # asked for by name
    assert "1 of 5 cells measured now" in capsys.readouterr().out
    assert json.loads(out.read_text())["cells"][0]["accuracy"]["all"] != 0.123

    after["unpruned"]["accuracy"]["all"] = 0.5
    out.write_text(json.dumps(after))
    with pytest.raises(SystemExit, match=r"the unpruned model at budget all came out otherwise than in .*out\.json"):
        leaderboard.main([*arguments, "--cells", str(tmp_path / "two"), "--recipes", "fastv"])
    assert json.loads(out.read_text()) == after


def test_the_json_of_the_repository_is_one_to_go_on_from() -> None:
    """Every registered recipe has its rows there under the settings of a run without options, or is measured by it."""
    result = json.loads((ROOT / "benchmarks" / "results" / "pico-leaderboard.json").read_text())
    assert result["settings"] == {**SETTINGS, "limit": 500, "budgets": list(leaderboard.BUDGETS)}
    there = leaderboard.places(result)
    lacking = {name for name, _ in leaderboard.to_measure(None, leaderboard.BUDGETS, there)}
    assert not lacking & ({name for name, _ in there} - {None, "random", "random-in-tower"})
