"""Imports only go down; no family or class names outside adapters; nothing is patched."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tokenprune.builtin.plugin import tokenprune_adapters

PACKAGE = Path(__file__).parents[2] / "tokenprune"
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "shipped": set(),
    "version": set(),
    "ops": set(),
    "outputs": {"errors"},
    "amounts": {"errors"},
    "seen": {"amounts", "errors", "ops"},
    "parts": {"errors", "seen"},
    "registry": {"errors", "parts"},
    "recipe": {"errors", "parts", "registry", "seen"},
    "families": {"errors", "parts", "seen"},
    "plan": {"amounts", "errors", "families", "parts", "recipe", "registry", "shipped"},
    "state": {"errors", "ops", "plan"},
    "model": {"errors", "parts", "plan", "registry"},
    "ecl": {"errors", "model", "ops", "outputs", "parts", "shipped"},
    "vision": {"errors", "model", "ops", "parts", "plan", "recipe", "registry", "seen"},
    "decoder": {"amounts", "errors", "model", "ops", "parts", "plan", "recipe", "registry", "seen", "state", "vision"},
    "pruner": {"amounts", "decoder", "errors", "model", "parts", "recipe", "state", "vision"},
    "builtin": {"amounts", "ecl", "errors", "families", "ops", "parts", "registry", "seen", "shipped"},
    "show": {"errors", "parts", "plan", "state"},
    "verify": {"builtin", "errors", "families", "model", "outputs", "parts", "pruner", "recipe", "registry", "seen"}
    | {"state", "version"},
    "api": {"amounts", "errors", "outputs", "plan", "pruner", "recipe", "show", "state", "verify", "version"},
    "contract": {"api", "builtin", "errors", "families", "model", "parts", "recipe", "registry", "seen", "state"}
    | {"verify"},
    "lab": {"amounts", "api", "builtin", "ecl", "errors", "families", "model", "ops", "outputs", "parts", "plan"}
    | {"recipe", "registry", "seen", "show", "verify"},
    "cli": {"amounts", "api", "ecl", "errors", "lab", "outputs", "plan", "recipe", "registry", "show", "verify"}
    | {"version"},
    "__init__": {"version", "api", "errors", "parts", "recipe", "registry", "seen"},
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
    assert {"state", "model", "errors"} <= imported(PACKAGE / "decoder" / "forward.py")


@pytest.mark.parametrize(
    "path", [path for path in FILES if place(path) != "families"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_families_are_known_to_their_files_only(path: Path) -> None:
    """No branch on a model type or class, nothing of a model of transformers, outside `families/`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            assert "model_type" not in ast.dump(node) or place(path) == "registry"
            assert "__class__" not in ast.dump(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            assert not (node.module or "").startswith("transformers.models")


FAMILIES = (
    "llava", "qwen", "glm4", "video_llama", "gemma", "internvl", "mistral", "pixtral", "idefics", "smolvlm",
    "llama4", "aya_vision", "cohere",
)  # fmt: skip
"""What the names of the families have in common: their model types, classes and published models."""


def words_of(tree: ast.AST) -> set[str]:
    """Names and strings of code. Documentation is left out: comments, and strings that are statements by themselves
    (docstrings of modules, classes, functions and attributes). There a family may serve as an example."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            found |= {node.value} if isinstance(node.value, str) and id(node) not in documentation else set()
        else:  # names of things, of attributes, of what is defined or imported, of arguments
            found |= {value for _, value in ast.iter_fields(node) if isinstance(value, str)}
    return found


def naming(words: set[str]) -> set[str]:
    return {word for word in words if any(family in word.lower() for family in FAMILIES)}


@pytest.mark.parametrize(
    "path", [path for path in FILES if place(path) != "families"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_code_names_no_family(path: Path) -> None:
    """Whatever is special about one is asked of its adapter. `builtin/plugin.py` registers them by their names."""
    named = naming(words_of(ast.parse(path.read_text())))
    if path == PACKAGE / "builtin" / "plugin.py":
        adapters = {model_type for adapter in tokenprune_adapters().values() for model_type in adapter.model_types}
        assert adapters == {name for name in adapters if naming({name})}, "add the new family's name to FAMILIES"
    else:
        assert not named


def test_the_test_sees_names_of_families() -> None:
    code = '''
"""LLaVA is an example."""
from transformers import LlavaConfig

class Tower(QwenTower):  # Qwen's
    """Qwen's windows."""

    llava_next: int
    """LLaVA-NeXT's."""

    def of(self, qwen):
        return f"a {self.video_llava} of llava-1.5-7b"
'''
    expected = {"LlavaConfig", "QwenTower", "llava_next", "qwen", "video_llava", " of llava-1.5-7b"}
    assert naming(words_of(ast.parse(code))) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_hooks_live_in_the_engine(path: Path) -> None:
    """Only the engine, its parts for the vision tower and the profile of the collapse layer register hooks.

    The contract and the check of model types watch models with their own: they are written without the engine.
    """
    text = path.read_text()
    if place(path) not in ("pruner", "model", "vision", "verify", "contract"):
        assert "register_forward" not in text
    assert ".forward =" not in text
    assert "__class__ =" not in text
