"""The wheel: configs and the bundled model inside, names right, and it works from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    "pyproject.toml", "tokenprune", "plugins", "configs", "tests", "docs", "benchmarks", "README.md", "LICENSE",
    "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml", "CITATION.cff",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder, ROOT], check=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_distribution_is_named_tokenprune_mllm(wheel: Path) -> None:
    assert wheel.name.startswith("tokenprune_mllm-")


def test_every_recipe_and_the_model_ship(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"tokenprune/{path.relative_to(ROOT)}" in names
    assert "tokenprune/pico/tokenprune-pico/model.safetensors" in names
    assert "tokenprune/py.typed" in names


def test_an_installed_wheel_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as pip does it, away from the checkout: recipes are found by name and the model answers."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import tokenprune.builtin as b, tokenprune.recipe as r; assert 'site' in str(b.configs()), b.configs();"
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


def test_the_top_level_is_tidy() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_the_bundled_model_is_small() -> None:
    weights = ROOT / "tokenprune" / "pico" / "tokenprune-pico"
    assert sum(path.stat().st_size for path in weights.iterdir()) <= 16 * 2**20
