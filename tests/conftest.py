from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask a hub
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from compatibility import Compatibility

pytest_plugins = ["tokenprune.contract.plugin"]  # where tokenprune is installed, pytest finds it by itself
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Remembered layers stay out of the user's cache directory, and out of other tests."""
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-index"]
    root = Path(__file__).parent.parent
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder, root], check=True, timeout=120)
    return next(folder.glob("*.whl"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md")
    parser.addoption("--all", action="store_true", help="tests marked slow too, which a choice of tests has anyway")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "works(area, what): a use that works, for docs/compatibility.md")
    config.addinivalue_line("markers", "refused(area, what): a use that is refused with a sentence")
    config.addinivalue_line("markers", "slow: a corner for `make test-all`")
    config.pluginmanager.register(Compatibility(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a choice of tests, slow ones stay out."""
    chosen = config.getoption("-k") or config.getoption("-m") or config.args != config.getini("testpaths")
    if config.getoption("--all") or chosen:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
