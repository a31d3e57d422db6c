"""Imports only go down; no family or class names outside adapters; nothing is patched."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tokenprune"
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "shipped": set(),
    "ops": set(),
    "outputs": {"errors"},
    "amounts": {"errors"},
    "seen": {"amounts", "errors", "ops"},
    "parts": {"errors", "seen"},
    "registry": {"errors", "parts"},
    "recipe": {"errors", "parts", "registry"},
    "plan": {"amounts", "errors", "parts", "recipe", "registry"},
    "state": {"errors", "ops", "plan"},
    "model": {"errors", "parts", "plan", "registry"},
    "ecl": {"errors", "model", "ops", "outputs", "parts", "shipped"},
    "vision": {"errors", "ops", "parts", "plan", "recipe", "registry", "seen"},
    "decoder": {"amounts", "ecl", "errors", "model", "ops", "parts", "plan", "recipe", "registry", "seen", "state"}
    | {"vision"},
    "families": {"errors", "parts", "seen"},
    "builtin": {"amounts", "errors", "families", "ops", "parts", "registry", "seen", "shipped"},
    "show": {"errors", "parts", "plan", "state"},
    "api": {"amounts", "decoder", "errors", "outputs", "plan", "recipe", "registry", "show", "state"},
    "contract": {"api", "builtin", "errors", "parts", "recipe", "registry", "seen", "state"},
    "lab": {"amounts", "api", "builtin", "ecl", "errors", "model", "ops", "outputs", "parts", "plan", "recipe"}
    | {"registry", "seen", "show"},
    "cli": {"amounts", "api", "errors", "lab", "outputs", "plan", "recipe", "registry", "show"},
    "__init__": {"api", "errors", "parts", "recipe", "registry", "seen"},
    "__main__": {"cli"},
}
"""What each folder or file of the package imports, no more and no less: from the bottom up, each line names lines above
it only, so there is no way round."""
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
    return found & MAY_IMPORT.keys()


def test_every_file_has_a_line() -> None:
    assert {place(path) for path in FILES} == MAY_IMPORT.keys()


def test_no_way_leads_round() -> None:
    above: set[str] = set()
    for name, below in MAY_IMPORT.items():
        assert below <= above, f"{name} may import {below - above}, which stand below it"
        above.add(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    too_high = imported(path) - MAY_IMPORT[place(path)] - {place(path)}
    assert not too_high


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_what_may_be_imported_is(name: str) -> None:
    used = {part for path in FILES if place(path) == name for part in imported(path)}
    assert MAY_IMPORT[name] <= used


def test_the_test_sees_imports() -> None:
    assert {"ops", "parts", "seen"} == imported(PACKAGE / "builtin" / "scorers" / "entropy.py")
    assert {"state", "vision", "recipe"} <= imported(PACKAGE / "decoder" / "forward.py")


@pytest.mark.parametrize(
    "path", [path for path in FILES if place(path) != "families"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_families_are_known_to_their_files_only(path: Path) -> None:
    """No model class by name, no branch on a model type, outside `families/`."""
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
    if place(path) not in ("decoder", "vision", "ecl", "model", "contract"):
        assert "register_forward" not in text
    assert ".forward =" not in text
    assert "__class__ =" not in text
