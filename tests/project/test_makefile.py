"""What the Makefile installs is whole or is made afresh: with a Python that only notes what it is asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# `-m venv FOLDER` puts this script there, pip and the imports go into the log and do what STUB_PIP and STUB_IMPORT say.
# The rest is a real Python's, of the version STUB_VERSION: an environment keeps the one it was made with.
STUB = f"""#!/bin/sh
[ ! -e "$0.version" ] || STUB_VERSION=$(cat "$0.version")
case "$*" in
    "-m venv "*)
        mkdir -p "$3/bin"; eval "$STUB_VENV"; cp "$0" "$3/bin/python"; echo "$STUB_VERSION" > "$3/bin/python.version" ;;
    *"-m pip --version") ;;
    *"-m pip "*)
        echo "$*" >> "$STUB_LOG"; eval "$STUB_PIP" ;;
    *import_module*)
        echo "import ${{*##*argv?1:?? }}" >> "$STUB_LOG"; eval "$STUB_IMPORT" ;;
    *)
        shift; exec "{sys.executable}" -c "import sys; sys.version_info = ($STUB_VERSION, 0)
$*" ;;
esac
"""
KILLED = "kill -9 $PPID; exit 1"
CTRL_C = "trap '' INT; kill -INT 0; exit 1"  # pip ends by itself then, with an error


class Checkout:
    """What the Makefile needs of one, in a folder whose name has a space."""

    def __init__(self, folder: Path) -> None:
        self.at = folder / "my checkout"
        for path in (
            "Makefile",
            "pyproject.toml",
            "constraints.txt",
            *(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/*/pyproject.toml")),
            *(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*-requirements.txt")),
        ):
            (self.at / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.at / path)
        self.python = folder / "python"
        self.python.write_text(STUB)
        self.python.chmod(0o755)

    def make(self, *words: str, **does: str) -> subprocess.CompletedProcess[str]:
        """`make` in a process group of its own, with what the stub does (PIP is its STUB_PIP)."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
        defaults = {"PIP": ":", "IMPORT": ":", "VENV": ":", "VERSION": "3, 11", "LOG": str(self.at / "log")}
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *words],
            cwd=self.at,
            env={**clean, **{f"STUB_{name}": value for name, value in (defaults | does).items()}},
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
        )

    def asked(self) -> list[str]:
        """What pip and the imports were asked for since the last time."""
        log = self.at / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.rpartition("--quiet ")[2] for line in lines]

    def pull(self, name: str = "constraints.txt") -> None:
        """The file is newer than everything that was made of it."""
        made = [path.stat().st_mtime for path in self.at.rglob("*") if path.is_file()]
        os.utime(self.at / name, (max(made) + 1,) * 2)
        for path in self.at.rglob("*"):  # and all of it lies in the past
            if path.is_file():
                os.utime(path, (path.stat().st_mtime - 10,) * 2)

    def __truediv__(self, name: str) -> Path:
        return self.at / name


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_an_environment_is_checked_by_what_it_is_for(checkout: Checkout) -> None:
    done = checkout.make(".venv/dev", ".venv/docs", ".venv/release", ".venv-web/ready", ".venv-eval/ready")
    assert done.returncode == 0, done.stderr
    asked = checkout.asked()
    imports = {word for line in asked if line.startswith("import ") for word in line.split()[1:]}
    assert asked[0] == "-c .venv/constraints.txt -e ."
    assert asked[1].startswith("import tokenprune.")
    assert len([line for line in asked if line.startswith("import ")]) == 8
    # base, int8, vision, dev, docs, release, web, eval
    assert {
        "torchao",
        "torchvision_ops",
        "pytest",
        "mkdocs",
        "twine",
        "gradio",
        "tokenprune.lab.web",
        "tokenprune.lab.evaluation.run",
    } <= imports
    assert not list(checkout.at.glob(".venv*/unfinished"))
    assert not list(checkout.at.rglob("*.new"))
    again = checkout.make(".venv/dev", ".venv/docs", ".venv/release", ".venv-web/ready", ".venv-eval/ready")
    assert again.returncode == 0
    assert checkout.asked() == []


def test_what_each_extra_brings_is_imported(checkout: Checkout) -> None:
    """A line of the extra `dev` that installs and cannot be imported is found when it is installed."""
    checkout.make(".venv/dev")
    imports = {word.split(".")[0] for line in checkout.asked() for word in line.split() if line.startswith("import ")}
    (extra,) = re.findall(r"^dev = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.S | re.M)
    wanted = {re.split(r"[>=<]", name)[0] for name in re.findall(r'"([^"]+)"', extra)} - {"types-PyYAML"}
    modules = {name.replace("scikit-learn", "sklearn").replace("-", "_") for name in wanted}
    assert modules <= imports


def test_without_a_network_one_sentence_and_nothing_is_broken(checkout: Checkout) -> None:
    done = checkout.make(".venv/base", PIP="exit 1")
    assert done.returncode != 0
    assert "make: pip could not install into .venv, its reason stands above. It needs a package index" in done.stderr
    assert not (checkout / ".venv/base").exists()
    assert checkout.make(".venv/dev").returncode == 0
    (checkout / ".venv/mine").touch()
    checkout.pull()
    before = (checkout / ".venv/base").stat().st_mtime
    done = checkout.make(".venv/dev", PIP="exit 1")
    assert "Nothing is broken" in done.stderr
    assert (checkout / ".venv/base").stat().st_mtime == before
    assert (checkout / ".venv/dev").exists()
    assert (checkout / ".venv/mine").exists()
    assert not (checkout / ".venv/unfinished").exists()
    checkout.asked()
    assert checkout.make(".venv/dev").returncode == 0
    assert [line for line in checkout.asked() if line.endswith("-e .")]  # tried again, in place
    assert (checkout / ".venv/mine").exists()


@pytest.mark.parametrize("end", [KILLED, CTRL_C], ids=["killed", "ctrl-c"])
@pytest.mark.parametrize("at", ["base", "dev"])
def test_what_was_interrupted_is_made_afresh(checkout: Checkout, at: str, end: str) -> None:
    """Also where the install that was interrupted went on top of one that was whole."""
    assert checkout.make(".venv/dev").returncode == 0
    (checkout / ".venv/half").touch()
    checkout.pull("constraints.txt" if at == "base" else "plugins/tokenprune-knorm/pyproject.toml")
    checkout.asked()
    assert checkout.make(".venv/dev", PIP=end).returncode != 0
    assert not [stamp for stamp in ("base", "dev") if (checkout / ".venv" / stamp).exists()]
    done = checkout.make(".venv/dev")
    assert done.returncode == 0, done.stderr
    assert ".venv was not finished: it is made afresh" in done.stdout
    assert not (checkout / ".venv/half").exists()
    assert [line for line in checkout.asked() if line.endswith("-e .")]
    assert (checkout / ".venv/dev").exists()


@pytest.mark.parametrize("end", [KILLED, "exit 1"], ids=["killed", "failed"])
def test_an_interrupted_venv_is_made_afresh(checkout: Checkout, end: str) -> None:
    assert checkout.make(".venv/base", VENV=f'touch "$3/half"; {end}').returncode != 0
    assert (checkout / ".venv/half").exists()
    assert checkout.make(".venv/base").returncode == 0
    assert not (checkout / ".venv/half").exists()


def test_what_cannot_be_imported_is_not_ready(checkout: Checkout) -> None:
    done = checkout.make(".venv/base", IMPORT="exit 1")
    assert done.returncode != 0
    assert "make: what was installed into .venv cannot be imported, see above" in done.stderr
    assert not (checkout / ".venv/base").exists()
    (checkout / ".venv/half").touch()
    assert checkout.make(".venv/base").returncode == 0
    assert not (checkout / ".venv/half").exists()


@pytest.mark.parametrize("name", [".venv-web", ".venv-eval", ".venv/int8", ".venv/vision"])
@pytest.mark.parametrize(
    "does", [{"PIP": "exit 1"}, {"PIP": KILLED}, {"IMPORT": "exit 1"}], ids=["failed", "killed", "import"]
)
def test_a_folder_of_packages_is_whole_or_the_old_one(checkout: Checkout, name: str, does: dict[str, str]) -> None:
    below = ".venv/base" if name.startswith(".venv/") else ".venv/dev"
    assert checkout.make(below).returncode == 0
    shutil.rmtree(checkout / name, ignore_errors=True)
    assert checkout.make(f"{name}/ready", **does).returncode != 0
    assert not (checkout / name).exists()
    assert checkout.make(f"{name}/ready").returncode == 0
    (checkout / name / "old").touch()
    checkout.pull()
    assert checkout.make(below).returncode == 0
    done = checkout.make(f"{name}/ready", **does)
    assert done.returncode != 0
    assert (checkout / name / "old").exists()
    if does == {"PIP": "exit 1"}:
        assert f"make: pip could not install into {name}," in done.stderr
    assert checkout.make(f"{name}/ready").returncode == 0
    assert not (checkout / name / "old").exists()


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "Makefile"])  # the last pins too
def test_what_is_newer_than_the_stamp_is_installed(checkout: Checkout, name: str) -> None:
    targets = (".venv/dev", ".venv/docs", ".venv-web/ready")
    assert checkout.make(*targets).returncode == 0
    checkout.asked()
    pins = checkout / "constraints.txt"
    before = pins.stat().st_mtime
    pins.write_text(pins.read_text() + "new==1\n")
    os.utime(pins, (before, before))
    assert checkout.make("--question", *targets).returncode == 0
    checkout.pull(name)
    assert checkout.make(*targets).returncode == 0
    pips = [line for line in checkout.asked() if not line.startswith("import ")]
    assert len(pips) == 6  # base, int8, vision, dev, docs, web
    for folder in (".venv", ".venv/int8", ".venv/vision", ".venv-web"):
        assert (checkout / folder / "constraints.txt").read_text().endswith("new==1\n")


@pytest.mark.parametrize("name", ["web", "eval"])
def test_what_a_list_pins_wins(checkout: Checkout, name: str) -> None:
    """And nothing else of constraints.txt is lost. Pip resolves the dependencies, so a list may lack some."""
    checkout.make(f".venv-{name}/ready")
    pinned = {line.split("==")[0] for line in (ROOT / "tests" / f"{name}-requirements.txt").open() if "==" in line}
    ours = (ROOT / "constraints.txt").read_text().splitlines()
    left = (checkout / f".venv-{name}/constraints.txt").read_text().splitlines()
    assert left == [line for line in ours if line.split("==")[0] not in pinned]
    assert len(left) < len(ours)
    (asked,) = [line for line in checkout.asked() if "-requirements.txt" in line]
    assert "--no-deps" not in asked


def test_the_floor_is_pinned_on_every_python(checkout: Checkout) -> None:
    assert checkout.make(".venv-floor/dev").returncode == 0
    pins = (checkout / ".venv-floor/constraints.txt").read_text().splitlines()
    assert [pin for pin in pins if pin.startswith("transformers")] == ["transformers==5.19.0"]
    assert checkout.asked()[0] == "-c .venv-floor/constraints.txt -e ."
    project = (ROOT / "pyproject.toml").read_text()
    assert '"transformers>=5.19,' in project


@pytest.mark.parametrize(("version", "fine"), [("3, 9", 0), ("3, 10", 1), ("3, 13", 1), ("3, 14", 0), ("2, 7", 0)])
def test_a_python_that_is_not_supported_is_named(checkout: Checkout, version: str, fine: bool) -> None:
    assert 'requires-python = ">=3.10,<3.14"' in (ROOT / "pyproject.toml").read_text()
    done = checkout.make(".venv/base", VERSION=version)
    assert (done.returncode == 0) == fine
    assert ("make: tokenprune needs a Python from 3.10 to 3.13, and" in done.stderr) != fine
    assert (checkout / ".venv").exists() == fine


def test_a_python_that_is_not_there_is_named(checkout: Checkout) -> None:
    done = checkout.make("demo", "PYTHON=nopython")
    assert done.returncode != 0
    assert "and nopython is none: make demo PYTHON=python3.12" in done.stderr


def test_an_environment_of_another_python_is_left_alone(checkout: Checkout) -> None:
    assert checkout.make(".venv/base").returncode == 0
    (checkout / ".venv/mine").touch()
    checkout.pull()
    done = checkout.make(".venv/base", VERSION="3, 12")
    assert done.returncode != 0
    assert "make: the Python of .venv (3.11) is not" in done.stderr
    assert (checkout / ".venv/mine").exists()
    assert checkout.make(".venv/base").returncode == 0


def test_two_makes_do_not_install_into_one_environment(checkout: Checkout) -> None:
    assert checkout.make(".venv/base", PIP=KILLED).returncode != 0
    (checkout / ".venv/unfinished/make").write_text(f"{os.getpid()}\n")
    done = checkout.make(".venv/base")
    assert done.returncode != 0
    assert f"make: process {os.getpid()} is installing into .venv: wait for it" in done.stderr
    assert (checkout / ".venv/unfinished/make").exists()


def test_clean_leaves_nothing_that_was_installed(checkout: Checkout) -> None:
    assert checkout.make(".venv-floor/dev", ".venv-web/ready", ".venv-eval/ready").returncode == 0
    assert checkout.make(".venv-web/ready", "--always-make", PIP="exit 1").returncode != 0
    assert list(checkout.at.glob(".venv*"))
    assert checkout.make("clean").returncode == 0
    assert not list(checkout.at.glob(".venv*"))


def test_the_list_of_targets_is_whole() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.M)
    said = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = [line.split("\t")[0] for line in said.splitlines()]
    assert set(listed) == set(phony.split()) - {"lint"}  # a part of `test`
