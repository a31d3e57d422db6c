"""Imports only go down; no family or class names outside adapters; nothing is patched."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tokenprune"
LEVELS = [
    {"errors", "files", "values", "budget", "tower", "interfaces", "ops", "hookspecs"},
    {"scorers", "schedules", "adapters", "mergers"},
    {"builtin", "registry"},
    {"recipe", "prompt", "cache", "parallel", "inputs", "recorder", "vision", "engine", "flops", "analysis"}
    | {"guard", "encodings", "report", "overlay", "page"},
    {"api", "media", "loading", "pico"},
    {"bench", "sweep", "shapes", "evaluation", "web", "demo", "contract"},
    {"cli", "__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of tokenprune that a file imports, relative imports resolved."""
    package = ("tokenprune", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                full = [*names, alias.name]
                if full[0] == "tokenprune" and len(full) > 1:
                    found.add(full[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tokenprune.")}
    return found & LEVEL.keys()


def test_every_file_has_a_level() -> None:
    assert {place(path) for path in FILES} == LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    too_high = {name for name in imported(path) if LEVEL[name] > LEVEL[place(path)]}
    assert not too_high


def test_the_test_sees_imports() -> None:
    assert {"ops", "interfaces", "values"} <= imported(PACKAGE / "scorers" / "entropy.py")
    assert {"cache", "analysis", "recipe"} <= imported(PACKAGE / "engine.py")


@pytest.mark.parametrize(
    "path", [path for path in FILES if place(path) != "adapters"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_families_are_known_to_adapters_only(path: Path) -> None:
    """No model class by name, no branch on a model type, outside `adapters/`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            assert "model_type" not in ast.dump(node) or place(path) == "registry"
            assert "__class__" not in ast.dump(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            assert not (node.module or "").startswith("transformers.models")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_hooks_live_in_the_engine(path: Path) -> None:
    """Only the engine, its parts for the vision tower and the profile of the collapse layer register hooks.

    The contract watches models with its own: it is written without the engine.
    """
    text = path.read_text()
    if path.name not in ("engine.py", "vision.py", "recorder.py", "ecl.py") and place(path) != "contract":
        assert "register_forward" not in text
    assert ".forward =" not in text
    assert "__class__ =" not in text
