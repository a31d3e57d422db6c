from __future__ import annotations

import os

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "works(area, what): a use that works, for docs/compatibility.md")
    config.addinivalue_line("markers", "refused(area, what): a use that is refused with a sentence")
    config.pluginmanager.register(Compatibility(config))
