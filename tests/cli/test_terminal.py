"""The command line as a terminal has it: what is imported for an answer, what Ctrl-C leaves behind, what fits."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import TextIO
from unittest import mock

import pytest
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tokenprune import __main__, __version__
from tokenprune.cli import app, tables
from tokenprune.lab import bench
from tokenprune.lab.evaluation import scores

HEAVY = {"torch", "transformers", "numpy", "PIL", "matplotlib"}
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
EVERYTHING = """
import contextlib, io, json, os, sys
from tokenprune.cli import main

def call(arguments, environment):
    os.environ.update(environment)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main(arguments)
    for name in environment:
        del os.environ[name]
    return out.getvalue()

calls, sys.argv[:] = json.loads(sys.argv[1]), ["tokenprune"]
said = [call(*one) for one in calls]
print(json.dumps({"said": said, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def fresh(*calls: tuple[list[str], dict[str, str]]) -> tuple[list[str], set[str]]:
    """What commands say, one after the other in a new process, and the packages that are imported then."""
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING, json.dumps(calls)], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout)
    return found["said"], set(found["modules"])


def test_help_version_typos_and_completion_import_nothing_heavy() -> None:
    """Seconds for anybody who only asks what there is."""
    tab = {"_TOKENPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "tokenprune swe", "COMP_CWORD": "1"}
    option = {**tab, "COMP_WORDS": "tokenprune sweep --lim", "COMP_CWORD": "2"}
    helps: list[tuple[list[str], dict[str, str]]] = [([name, "--help"], {}) for name in COMMANDS]
    said, modules = fresh(
        (["--help"], {}), (["--version"], {}), (["demoo"], {}), (["sweep", "--limt", "1"], {}), ([], tab), ([], option),
        *helps,
    )  # fmt: skip
    assert "new-plugin" in said[0]
    assert said[1] == f"tokenprune {__version__}\n"
    assert "demoo" in said[2]
    assert "--limt" in said[3]
    assert said[4:6] == ["sweep\n", "--limit\n"]
    assert all(f"{name} [OPTIONS]" in text for name, text in zip(COMMANDS, said[6:], strict=True))
    assert not HEAVY & modules


def test_commands_that_only_read_do_without_transformers() -> None:
    """Nor do plugins of this repository need it to say what they bring."""
    reading = ["ls", "ls recipes", "show fastv@128", "check fastv entropyprune", "explain entropyprune --budget 1/3"]
    said, modules = fresh(*((words.split(), {}) for words in reading))
    for text, word in zip(said, ("knorm", "visionzip", "average: 128", "fine", "average 191.6"), strict=True):
        assert word in text
    assert "torch" in modules
    assert not {"transformers", "PIL", "matplotlib"} & modules


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tokenprune", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"tokenprune {__version__}\n")


def test_the_installed_command_is_the_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        points = ConfigParser()
        points.read_string(archive.read(name).decode())
    assert points["console_scripts"]["tokenprune"] == f"{__main__.__name__}:{__main__.main.__name__}"


def test_nothing_is_imported_before_ctrl_c_is_caught() -> None:
    code = "import sys; before = {*sys.modules}; import tokenprune.__main__; print(*sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) - {"__future__"} == {"tokenprune", "tokenprune.__main__", "tokenprune.version"}


@pytest.mark.parametrize(("module", "arguments"), [("typer", ["--help"]), ("torch", ["ls"])])
def test_ctrl_c_during_imports_is_quiet(tmp_path: Path, module: str, arguments: list[str]) -> None:
    """Be it the command line's own or what a command works with."""
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tokenprune", *arguments]
    done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_a_command_runs_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenprune.lab.loading.load_model", interrupted)
    assert run(capsys, "calibrate", "pico") == (130, "", "")


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[TextIO, list[str]]]:
    """A pseudo-terminal to write to; once it is closed, the list has all its lines without colors."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    read, lines = bytearray(), list[str]()

    def drain() -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 65536):
                read.extend(part)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with open(theirs, "w") as file:
            yield file, lines
    finally:
        reader.join()
        os.close(ours)
        lines += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read.decode()).replace("\r", "").splitlines()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with short paths, and no width that the environment says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENPRUNE_CACHE", "cache")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def words(text: str) -> set[str]:
    return {word for word in text.split() if word.strip("─-|")}


def at_80(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What a command prints in a terminal of 80 columns: its lines fit."""
    with terminal() as (file, lines), monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", file)
        code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert lines
    assert max(map(len, lines)) <= 80
    return lines


SHOWN = {
    "ls": ["ls"],
    "ls recipes": ["ls", "recipes", "--shape", "llava-next-7b", "--budget", "1/4"],
    "explain": ["explain", "fastv", "prune.0.schedule.average=128"],
    "calibrate": ["calibrate", "pico", "--limit", "1"],
    "profile": ["profile", "pico", "--limit", "2"],
    "horizon": ["horizon", "pico", "--limit", "1", "--layers", "0,4", "--window", "12", "--oracle", "20"],
    "sweep": [
        *("sweep", "prune.0.schedule.layer=1,2", "-r", "fastv", "-r", "entropyprune", "--limit", "1"),
        *("--budget", "0.123456,1/100"),
    ],
    "demo": ["demo", "-r", "pyramiddrop"],
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_terminal_shows_what_a_pipe_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, desk: Path, case: str
) -> None:
    """No word or number is missing from a terminal of 80 columns, and none is there that a pipe has not: none is cut.

    In a pipe every row of a table is one line.
    """
    timed = bench.Bench.run
    same = {"prefill_ms": 12345.6, "total_ms": 1.0}  # measured times are not alike
    monkeypatch.setattr(bench.Bench, "run", lambda *given, **named: replace(timed(*given, **named), **same))
    lines = at_80(capsys, monkeypatch, *SHOWN[case])
    code, piped, _ = run(capsys, *SHOWN[case])
    assert code == 0
    assert words("\n".join(lines)) == words(piped)
    assert "…" not in piped


def test_ls_shows_every_name_setting_and_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, desk: Path
) -> None:
    """In a terminal of 80 columns; in a pipe, each with its name on one line."""
    shown = words("\n".join(at_80(capsys, monkeypatch, "ls")))
    piped = [set(line.split()) for line in run(capsys, "ls")[1].splitlines()]
    entries = [entry for part in json.loads(run(capsys, "ls", "--json")[1]).values() for entry in part]
    assert max(len(entry.get("settings", "")) for entry in entries) > 60
    for entry in entries:
        said = {entry["name"], entry["distribution"], *entry.get("settings", "").split()}
        assert said <= shown
        assert any(said <= line for line in piped)
    shown = words("\n".join(at_80(capsys, monkeypatch, "ls", "recipes")))
    for row in json.loads(run(capsys, "ls", "recipes", "--json")[1]):
        assert {row["recipe"], f"{row['average']:.1f}", f"{row['flops_share']:.1%}"} <= shown


def test_a_terminal_shows_all_that_bench_writes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, desk: Path
) -> None:
    arguments = ("bench", "pico", "-r", "fastv", "-r", "entropyprune", "--runs", "1", "--new-tokens", "2")
    lines = at_80(capsys, monkeypatch, *arguments)
    table = [line for line in Path("bench/bench.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 5
    shown = words("\n".join(lines))
    assert words("\n".join(table)) <= shown
    extra = shown - words("\n".join(table))
    assert not [word for word in extra if any(character.isdigit() for character in word)]


def test_a_terminal_shows_the_scores_of_every_task() -> None:
    """Of tasks with several metrics; the one with pictures says its tokens once, in further blocks by its name."""
    one = {"exact_match,none": 0.25, "exact_match_stderr,none": 0.0625, "anls,flexible-extract": 0.123456}
    results = {
        "results": {"textvqa_validation_lite": one, "mme_perception": {"score,none": 1234.5678}},
        "tokenprune": {"visual": {"textvqa_validation_lite": {"visual_tokens": 2880.0, "visual_average": 719.5}}},
    }
    with terminal(60) as (file, lines), contextlib.redirect_stdout(file):
        tables.show("", scores.HEADER, scores.table(results), words=["metric"], keys=2)
    assert max(map(len, lines)) <= 60
    assert {"0.2500", "0.0625", "0.1235", "1234.5678", "2880.0", "719.5", "25.0%"} <= words("\n".join(lines))
    (row,) = [line for line in lines if "25.0%" in line]
    assert row.split()[:2] == ["textvqa_validation_lite", "exact_match"]


WORDS = st.text("abc123.%é", min_size=1, max_size=12)
CELLS = st.lists(WORDS, max_size=4).map(" ".join)


@given(st.data(), st.integers(30, 120))
def test_any_table_fits_with_all_its_words(data: st.DataObject, width: int) -> None:
    """Where the first column and any other one fit beside each other; cells that must not wrap are on one line."""
    header = data.draw(st.lists(CELLS.filter(bool), min_size=1, max_size=7, unique=True))
    rows = data.draw(st.lists(st.tuples(*[CELLS] * len(header)), max_size=5))
    wrapping = data.draw(st.sets(st.sampled_from(header)))
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=str(width)), contextlib.redirect_stdout(out):
        tables.show("", header, rows, words=wrapping)
    said = out.getvalue()
    assert words(said) == words(" ".join([*header, *(cell for row in rows for cell in row)]))
    whole = [cell for row in rows for name, cell in zip(header, row, strict=True) if name not in wrapping]
    assert all(any(cell in line for line in said.splitlines()) for cell in whole)
    widest = max([cell_len(text) for text in [*header, *(cell for row in rows for cell in row)]])
    if 2 * widest + tables.GAP <= width:
        assert max(map(cell_len, said.splitlines())) <= width


def test_sentences_break_between_words() -> None:
    with terminal(30) as (file, lines):
        tables.say("error: recipe 'x' is not valid:\n  - prune.0.schedule.keep: expected a number, got 1234567", file)
    assert max(map(len, lines)) <= 30
    assert lines[2] == "  - prune.0.schedule.keep:"
    assert lines[-1].endswith(" 1234567")
    out = io.StringIO()
    tables.say("one two " * 50, out)
    assert out.getvalue() == "one two " * 50 + "\n"


def test_a_shown_recipe_is_not_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, desk: Path
) -> None:
    """Its lines are those of the file, as long as they are: what is copied from a terminal is the recipe."""
    with terminal() as (file, lines), monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", file)
        assert run(capsys, "show", "cdpruner")[0] == 0
    plain = run(capsys, "show", "cdpruner")[1].splitlines()
    assert max(map(len, plain)) > 80
    assert [line.rstrip() for line in lines] == plain


def test_help_and_errors_fit_a_terminal(desk: Path) -> None:
    """A process of its own: Typer asks the terminal of the process for its size."""
    calls: list[list[str]] = [["--help"], ["sweep", "--limt", "1"], *([name, "--help"] for name in COMMANDS)]
    code = (
        "import contextlib, json, sys\nfrom tokenprune.cli import main\n"
        "for call in json.loads(sys.argv.pop()):\n    with contextlib.suppress(SystemExit):\n        main(call)"
    )
    with terminal() as (file, lines):
        command = [sys.executable, "-c", code, json.dumps(calls)]
        subprocess.run(command, stdin=file, stdout=file, stderr=file, timeout=60, check=True)
    assert max(map(len, lines)) <= 80
    said = " ".join(lines)
    assert "…" not in said
    assert "--limt" in said
    for name in COMMANDS:
        assert f"{name} [OPTIONS]" in said
