"""Wheel and sdist: configs and the bundled model inside, names right, and it works from an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from tokenprune.errors import install

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
TOP_LEVEL = {
    "pyproject.toml", "tokenprune", "plugins", "configs", "tests", "docs", "benchmarks", "README.md", "LICENSE",
    "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "Makefile", "constraints.txt", "mkdocs.yml",
    "CITATION.cff", "AGENTS.md",
}  # fmt: skip


def test_the_distribution_is_named_tokenprune_mllm(wheel: Path) -> None:
    assert wheel.name.startswith("tokenprune_mllm-")


def test_every_recipe_and_the_model_ship(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"tokenprune/{path.relative_to(ROOT)}" in names
    assert "tokenprune/lab/pico/tokenprune-pico/model.safetensors" in names
    assert "tokenprune/py.typed" in names


def test_the_package_page_links_to_nothing_that_is_not_there(wheel: Path) -> None:
    """The README as metadata: its code and words unchanged, links to files of the checkout taken out."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = archive.read(metadata).decode().partition("\n\n")[2]
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"\]\((?!https?:)", readme)
    assert not re.findall(r"\]\((?!https?:)", page)
    assert re.findall(r"\]\(https?:[^)]*\)", page) == re.findall(r"\]\(https?:[^)]*\)", readme)
    blocks = re.findall(r"```.*?```", readme, flags=re.S)
    assert len(blocks) > 3
    assert re.findall(r"```.*?```", page, flags=re.S) == blocks


def test_an_installed_wheel_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as pip does it, away from the checkout: recipes are found by name and the model answers."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import tokenprune.shipped as b, tokenprune.recipe as r; assert 'site' in str(b.configs()), b.configs();"
        "assert {'entropyprune', 'fastv'} <= set(r.registered());"
        "from tokenprune.cli import main; main(['explain', 'entropyprune@128'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "average 127." in done.stdout


THIRD_PARTY = {"av", "flash-attn", "gradio", "lmms-eval", "matplotlib", "pre-commit"}
"""Names that a message or a page may tell to install from an index: others' projects that are known to be there."""


def told_to_install(text: str) -> list[str]:
    """What `pip install` stands before, up to the end of the command: names, and paths after -e or with a slash."""
    found = []
    for rest in re.findall(r"pip install((?:[^`)&;#\n]|\\\n)*)", text):
        words = re.findall(r"[^\s\"'\\,]+", rest)
        for before, word in zip(["", *words], words, strict=False):
            if not word.startswith("-") and before not in ("-e", "-r", "-c") and not re.match(r"[./{]|\w+/", word):
                found.append(re.split(r"[\[<>=.:]", word)[0])
    return found


def test_the_test_sees_names_and_paths() -> None:
    assert told_to_install('`pip install "tokenprune-mllm[eval]"` brings it') == ["tokenprune-mllm"]
    assert told_to_install("needs it: pip install av, matplotlib>=3") == ["av", "matplotlib"]
    assert told_to_install("$ pip install -e . && pip install -e plugins/x tokenprune  # a comment") == ["tokenprune"]
    assert told_to_install("pip install . -r a.txt plugins/tokenprune-papers './x[test]' -e 'y[z]' --quiet") == []


def test_nobody_is_told_to_install_a_name_that_is_not_ours() -> None:
    """Whoever registers it first on an index would be installed. From a checkout everything comes by its path."""
    shown = (".py", ".md", ".toml", ".yaml", ".ipynb", ".cff")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = [ROOT / name for name in tracked.splitlines() if name.endswith(shown) and not name.startswith("tests/")]
    told = {path: told_to_install(path.read_text()) for path in pages if path.is_file()}
    assert sum(map(len, told.values())) > 2
    assert {path.name: names for path, names in told.items() if set(names) - THIRD_PARTY} == {}


@pytest.mark.parametrize("project", [ROOT, *PLUGINS], ids=lambda path: path.name)
def test_no_extra_and_no_dependency_is_a_name_that_is_not_ours(project: Path) -> None:
    text = re.sub(r"#.*", "", (project / "pyproject.toml").read_text())
    sections = [part for part in re.split(r"^\[", text, flags=re.M) if re.match(r"project(\.optional-.*)?\]\n", part)]
    lines = [line for part in sections for line in part.splitlines() if not re.match("name|description", line)]
    wanted = re.findall(r'"([\w-]+)', "\n".join(lines))
    assert ("torch" in wanted) == (project == ROOT)
    assert not [name for name in wanted if name.startswith("tokenprune")]


def test_messages_say_how_to_get_an_extra_that_there_is() -> None:
    extras = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    assert extras is not None
    known = set(re.findall(r"^(\w+) = \[", extras[1], flags=re.M))
    asked = [name for path in sorted((ROOT / "tokenprune").rglob("*.py")) for name in asked_extras(path)]
    assert set(asked) <= known
    assert {"eval", "demo"} <= set(asked)
    assert install("eval") == 'in a checkout of tokenprune, pip install -e ".[eval]"'


def asked_extras(path: Path) -> list[str]:
    return re.findall(r"\binstall\(['\"](\w+)['\"]\)", path.read_text())


def test_the_top_level_is_tidy() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_the_bundled_model_is_small() -> None:
    weights = ROOT / "tokenprune" / "lab" / "pico" / "tokenprune-pico"
    assert sum(path.stat().st_size for path in weights.iterdir()) <= 16 * 2**20


def test_the_contract_is_found_by_pytest(wheel: Path) -> None:
    """Its modules ship, and its entry point has its own name: asked for twice, it is loaded once."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    for path in (ROOT / "tokenprune" / "contract").glob("*.py"):
        assert f"tokenprune/contract/{path.name}" in names
    assert "[pytest11]\ntokenprune.contract.plugin = tokenprune.contract.plugin\n" in points


def test_a_wheel_has_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        assert not [name for name in archive.namelist() if "__pycache__" in name or "/.venv" in name]
    assert top == {"tokenprune", wheel.name.split("-py3")[0] + ".dist-info"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    (packed,) = folder.glob("tokenprune_mllm-*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / packed.name.removesuffix(".tar.gz")


def test_the_sdist_has_what_is_tracked(sdist: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = [name for name in tracked.splitlines() if not name.startswith(".")]
    assert "configs/recipes/entropyprune.yaml" in wanted
    assert [name for name in wanted if (ROOT / name).exists() and not (sdist / name).is_file()] == []


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """As pip does it where there is no wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", tmp_path, sdist], check=True, timeout=120)
    with zipfile.ZipFile(tmp_path / wheel.name) as built, zipfile.ZipFile(wheel) as ours:
        assert sorted(built.namelist()) == sorted(ours.namelist())


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    """`import tokenprune` alone loads nothing; every name of `__all__` is there and listed."""
    code = (
        "import sys, tokenprune; heavy = {'torch', 'transformers', 'pluggy', 'omegaconf'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "import tokenprune.contract.plugin; assert 'torch' not in sys.modules;"
        "assert set(tokenprune.__all__) <= set(dir(tokenprune));"
        "from tokenprune import Scorer, hookimpl; assert 'transformers' not in sys.modules;"
        "from tokenprune import *; assert prune.__module__ == 'tokenprune.api' and Scorer is tokenprune.Scorer;"
        "assert not hasattr(tokenprune, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_workflow_runs_every_python_with_both_transformers() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    makefile, project = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.10", "3.11", "3.12", "3.13"], "target": ["test", "test-floor"]}
    assert 'requires-python = ">=3.10,<3.14"' in project
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert steps[0] == "make ${{ matrix.target }} PYTHON=python"
    for target in (*matrix["target"], "dist"):
        assert f"\n{target}: " in makefile


def test_commits_are_checked_by_what_make_installs() -> None:
    """No hook comes from a network: each is a program of .venv, pinned in constraints.txt."""
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    pins = (ROOT / "constraints.txt").read_text()
    for hook in repo["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")
        assert f"\n{Path(program).name}==" in pins
