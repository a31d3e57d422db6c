"""Processors of transformers that want torchvision, in processes that have it: each file of `tests/processors`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted((TESTS / "processors").glob("*.py"))


@pytest.mark.skipif(not (Path(sys.prefix) / "vision").exists(), reason="needs torchvision: make test")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_in_a_process_with_torchvision(file: Path) -> None:
    paths = [str(TESTS / "support"), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "torchvision_ops", str(file)],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
