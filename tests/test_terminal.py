"""The command line as a terminal has it: what is imported for an answer, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from test_cli import run

from tokenprune import __main__, __version__
from tokenprune.cli import app

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

    monkeypatch.setattr("tokenprune.loading.load_model", interrupted)
    assert run(capsys, "calibrate", "pico") == (130, "", "")
