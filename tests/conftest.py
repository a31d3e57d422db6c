from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask a hub
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Remembered layers stay out of the user's cache directory, and out of other tests."""
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path / "cache"))
