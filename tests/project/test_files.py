"""Files that are whole or not there, rows that several processes write, outputs that are refused before the work."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run
from PIL import Image

from tokenprune import outputs
from tokenprune.cli import analyse, measure
from tokenprune.cli import run as commands
from tokenprune.errors import MediaError, TokenpruneError
from tokenprune.lab import loading, media, results

# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [b"", b'{"key": "b", "x"', b"\x00\xff\n", b"[]\n", b'{"key": "b"}', b"null"])
def test_a_row_cut_short_is_measured_again(cut: bytes, tmp_path: Path) -> None:
    rows = results.Rows(tmp_path / "deep" / "rows", {"seed": 1})
    rows.add("a", {"x": [1.5]})
    whole = rows.path("a").read_bytes()
    rows.path("b").write_bytes(cut)
    (tmp_path / "deep" / "rows" / ".b.json.0.tmp").write_bytes(cut)  # what a kill may leave
    assert "a" in rows
    assert "b" not in rows
    with pytest.raises(TokenpruneError, match="run the same command again"):
        rows["b"]
    rows.add("b", {"x": [2]})
    again = results.Rows(tmp_path / "deep" / "rows", {"seed": 1})
    assert [again[key]["x"] for key in ("b", "a")] == [[2], [1.5]]
    assert rows.path("a").read_bytes() == whole


@pytest.mark.parametrize("settings", [{"seed": 2}, {}, {"seed": 1, "more": 2}])
def test_rows_of_other_settings_are_neither_read_nor_touched(settings: dict[str, int], tmp_path: Path) -> None:
    one, other = results.Rows(tmp_path, {"seed": 1}), results.Rows(tmp_path, settings)
    other.add("a", {"x": 2})
    before = other.path("a").read_bytes()
    assert "a" not in one
    one.add("a", {"x": 1})
    assert [rows["a"]["x"] for rows in (one, other)] == [1, 2]
    assert other.path("a").read_bytes() == before
    one.path("a").write_bytes(before)  # under a name that is not its own
    assert "a" not in one


def test_keys_that_read_the_same_are_different_rows(tmp_path: Path) -> None:
    rows = results.Rows(tmp_path, {"layers": (1, 2)})
    keys = ["a/b", "a b", "../a", "A/b", "", "é" * 300, "..", "x" * 300, "x" * 299]
    for i, key in enumerate(keys):
        rows.add(key, {"i": i})
    again = results.Rows(tmp_path, {"layers": [1, 2]})
    assert [again[key]["i"] for key in keys] == list(range(len(keys)))
    assert sorted(tmp_path.iterdir()) == sorted(rows.path(key) for key in keys)
    assert len({path.name.lower() for path in tmp_path.iterdir()}) == len(keys)


MANY = 150


def measured(folder: Path, gate: object) -> None:
    """What a process does that measures into a folder which others use."""
    rows = results.Rows(folder, {"seed": 1})
    gate.wait(60)  # type: ignore[attr-defined]
    for i in range(MANY):
        if str(i) not in rows:
            rows.add(str(i), {"value": [i] * (1 + i % 40)})
    assert [rows[str(i)]["value"][0] for i in range(MANY)] == list(range(MANY))


def test_several_processes_write_into_one_folder(tmp_path: Path) -> None:
    """Every row is right for those who write while others do, and for who comes after."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    processes = [context.Process(target=measured, args=(tmp_path, gate)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    rows = results.Rows(tmp_path, {"seed": 1})
    assert [rows[str(i)]["value"] for i in range(MANY)] == [[i] * (1 + i % 40) for i in range(MANY)]
    assert len(list(tmp_path.iterdir())) == MANY


def test_rows_do_not_grow_in_memory(tmp_path: Path) -> None:
    rows = results.Rows(tmp_path, {"seed": 1})
    before = len(repr(vars(rows)))
    for i in range(20):
        rows.add(str(i), {"i": i})
    assert len(repr(vars(rows))) == before


def test_a_full_disk_is_a_sentence_and_leaves_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = results.Rows(tmp_path, {"seed": 1})
    rows.add("a", {"x": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for key in ("a", "b"):
        with pytest.raises(TokenpruneError, match=r"cannot write .*No space left on device"):
            rows.add(key, {"x": 2})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("there", [None, "notes", "[1]", '{"rows": []}', '{"settings": {"seed": 1, "layers": [1]}}'])
def test_results_of_the_same_settings_may_be_replaced(there: str | None, tmp_path: Path) -> None:
    if there is not None:
        (tmp_path / "out.json").write_text(there)
    results.check_settings(tmp_path / "out.json", {"seed": 1, "layers": (1,)})


@pytest.mark.parametrize(("settings", "differ"), [({"a": 1, "b": 3}, "b"), ({"a": 1}, "b"), ({"b": 2, "c": 1}, "c, a")])
def test_results_of_other_settings_are_left_alone(settings: dict[str, int], differ: str, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text('{"settings": {"a": 1, "b": 2}}')
    with pytest.raises(TokenpruneError, match=rf"other settings \({differ}\)"):
        results.check_settings(tmp_path / "out.json", settings)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(TokenpruneError, match="cannot write"):
        outputs.write(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_is_left_out_does_not_stay_from_before(tmp_path: Path) -> None:
    assert outputs.write_all(tmp_path / "new", {"a": "1", "b": b"2"}) == [
        tmp_path / "new" / "a",
        tmp_path / "new" / "b",
    ]
    assert outputs.write_all(tmp_path / "new", {"a": "3", "b": None, "c": None}) == [tmp_path / "new" / "a"]
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("a", "3")]


def place(tmp_path: Path, where: str) -> Path:
    """Of an output: something that is there, or lies in something that is no folder, or cannot be made."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    return Path(where) if where.startswith("/") else tmp_path / where


@pytest.mark.parametrize(
    ("where", "folder", "message"),
    [
        ("file", True, "that is no folder"),
        ("file/out", True, "file is no folder"),
        ("file/deep/out", False, "file is no folder"),
        ("folder", False, "that is a folder"),
        ("pipe", False, "no ordinary file"),
        ("nowhere", True, "that is no folder"),
        ("nowhere/out", False, "nowhere is no folder"),
        ("/proc/out", True, ""),
        ("/proc/out.json", False, ""),
        ("/proc/deep/out.json", False, ""),
        ("x" * 300, True, "File name too long"),
    ],
)
def test_outputs_that_cannot_be_are_refused(where: str, folder: bool, message: str, tmp_path: Path) -> None:
    path = place(tmp_path, where)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TokenpruneError, match=f"cannot write .*{message}.*Give a place that can be"):
        outputs.check_output(path, folder)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("where", "folder"), [("file", False), ("new", False), ("new/deep/out", False), ("folder", True), ("a/b", True)]
)
def test_outputs_that_can_be_leave_nothing(where: str, folder: bool, tmp_path: Path) -> None:
    path = place(tmp_path, where)
    before = sorted(tmp_path.rglob("*"))
    outputs.check_output(path, folder)
    assert sorted(tmp_path.rglob("*")) == before
    outputs.write(path / "in" if folder else path, "text")


def test_the_current_folder_may_hold_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, folder in ((".", True), ("out.json", False), ("new", True)):
        outputs.check_output(Path(path), folder)
    assert not list(tmp_path.iterdir())


def test_pictures_are_written_whole_in_a_known_format(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    media.save(picture, tmp_path / "new" / "a.PNG")
    with Image.open(tmp_path / "new" / "a.PNG") as found:
        assert (found.format, found.size) == ("PNG", (4, 4))
    for name in ("b", "b.txt", "b.pdf.doc"):
        with pytest.raises(MediaError, match=r"cannot write the picture .*\.png"):
            media.save(picture, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# -- commands --------------------------------------------------------------------------------------------------------

ASK = ("generate", "pico", "--image", "picture.png", "--prompt", "x", "-r", "fastv")
FOLDERS = {
    "profile": ("profile", "pico"),
    "horizon": ("horizon", "pico"),
    "sweep": ("sweep", "-r", "fastv"),
    "bench": ("bench", "pico", "-r", "fastv"),
    "bench without weights": ("bench", "--random-init", "llava-1.5-7b", "--scale", "1/64", "-r", "fastv"),
    "demo": ("demo",),
    "eval": ("eval", "pico", "--tasks", "pico"),
}
FILES = {
    "overlay": (*ASK, "--overlay"),
    "report": (*ASK, "--report"),
    "calibrate": ("calibrate", "pico", "--output"),
    "calibrate a method": ("calibrate", "pico", "--method", "vtw", "--output"),
}


def no_model(monkeypatch: pytest.MonkeyPatch, instead: Callable[..., object]) -> None:
    """Do something else where a command loads a model, by whatever name it has it."""
    for module in (loading, analyse, measure, commands):
        monkeypatch.setattr(module, "load_model", instead, raising=False)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, where loading a model is a failure."""
    no_model(monkeypatch, lambda *args: pytest.fail("the work began"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("picture.png")
    Path("file").write_text("mine")
    Path("folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("where", ["file", "file/out", "/proc/out"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_is_refused_before_the_work(
    name: str, where: str, capsys: pytest.CaptureFixture[str], idle: Path
) -> None:
    code, _, err = run(capsys, *FOLDERS[name], "--output", where)
    assert code == (2 if where == "file" else 1)
    assert where in err
    assert "Traceback" not in err
    assert sorted(path.name for path in idle.rglob("*")) == ["file", "folder.png", "picture.png"]


@pytest.mark.parametrize("where", ["folder.png", "file/out.png", "/proc/out.png"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_is_refused_before_the_work(
    name: str, where: str, capsys: pytest.CaptureFixture[str], idle: Path
) -> None:
    code, out, err = run(capsys, *FILES[name], where)
    assert code == (2 if where == "folder.png" else 1)
    assert where in err
    assert not out
    assert "Traceback" not in err
    assert sorted(path.name for path in idle.rglob("*")) == ["file", "folder.png", "picture.png"]


@pytest.mark.parametrize("name", ["bench", "sweep", "demo"])
def test_ctrl_c_says_how_to_go_on(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    no_model(monkeypatch, interrupt)
    code, _, err = run(capsys, *FOLDERS[name], "--output", str(tmp_path / "out"))
    assert code == 130
    assert "Traceback" not in err
    if name != "demo":
        expected = {"bench": "no results were written", "sweep": f"{tmp_path}/out/rows, the same command goes on"}
        assert err.count("interrupted: ") == 1
        assert expected[name] in err


def test_rows_say_what_they_depend_on(tmp_path: Path) -> None:
    rows = results.Rows(tmp_path, {"seed": 1})
    rows.add("a b", {"x": 1})
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("a-b-")
    assert json.loads(path.read_text()) == {"key": "a b", "settings": {"seed": 1}, "row": {"x": 1}}
