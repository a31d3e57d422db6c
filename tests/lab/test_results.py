"""The folder of one measurement: numbers with their settings, texts, figures, and rows that stay for the next run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenprune.errors import TokenpruneError
from tokenprune.lab import plots, results

SETTINGS = {"seed": 1, "layers": [1, 2]}


def test_numbers_are_kept_with_their_settings_and_beside_texts_and_figures(tmp_path: Path) -> None:
    made = results.Results(tmp_path / "new", "mine", SETTINGS)
    made.rows.add("a", {"x": 1})
    written = made.save({"found": 3}, texts={"mine.md": "words"}, figures={"mine.png": lambda: b"picture"})
    assert written == [tmp_path / "new" / name for name in ("mine.json", "mine.md", "mine.png")]
    assert json.loads(made.path.read_text()) == {"settings": SETTINGS, "found": 3}
    assert made.path.read_text().startswith("{\n ")
    made.save({"found": 3}, indent=None)
    assert made.path.read_text() == json.dumps({"settings": SETTINGS, "found": 3}) + "\n"
    assert results.Results(tmp_path / "new", "mine", SETTINGS).rows["a"] == {"x": 1}


def test_numbers_of_other_settings_are_left_alone(tmp_path: Path) -> None:
    results.Results(tmp_path, "mine", SETTINGS).save({})
    for name, settings in (("mine", SETTINGS), ("other", {"seed": 2})):
        results.Results(tmp_path, name, settings).check()
    with pytest.raises(TokenpruneError, match=r"other settings \(seed, layers\)"):
        results.Results(tmp_path, "mine", {"seed": 2}).check()


def test_an_old_figure_does_not_stay_beside_new_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = results.Results(tmp_path, "mine", SETTINGS)
    made.save({}, figures={"mine.png": lambda: b"old"})
    monkeypatch.setattr(plots.base, "missing", lambda: "no matplotlib")
    assert made.save({}, figures={"mine.png": lambda: pytest.fail("cannot be drawn")}) == [made.path]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
