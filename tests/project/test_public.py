"""docs/api.md is the list of public names, and what is built on tokenprune keeps to it."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tokenprune

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
LISTED = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.M)
INSIDE = {"api.md", "architecture.md", "changelog.md"}  # pages that speak of what is not public


def find(name: str) -> object:
    """What a dotted name means: a module, or something in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(find(module), last)


def public(name: str) -> bool:
    """Whether api.md lists the name, its module or class, or something in it (a package on the way there)."""
    parent, _, last = name.rpartition(".")
    if name in LISTED or name in ("tokenprune", "tokenprune.hookimpl"):
        return True
    if any(one.startswith(f"{name}.") for one in LISTED):
        return True
    if parent not in LISTED or last.startswith("_"):
        return False
    where, what = find(parent), find(name)
    home = getattr(what, "__module__", parent)
    return not isinstance(where, ModuleType) or home == parent or home.startswith(f"{parent}.")


def used(code: str) -> Iterator[str]:
    """Dotted names of tokenprune in Python code: what is imported, and what is taken from a module."""
    tree = ast.parse(code)
    bound = {}  # a name in the code -> the module it is
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "tokenprune":
                    yield alias.name
                    bound[alias.asname or "tokenprune"] = alias.name if alias.asname else "tokenprune"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tokenprune" and not node.level:
            for alias in node.names:
                yield (full := f"{node.module}.{alias.name}")
                if isinstance(find(full), ModuleType):
                    bound[alias.asname or alias.name] = full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            yield f"{bound[node.value.id]}.{node.attr}"


def sources() -> dict[str, str]:
    """Code that is built on tokenprune: plugins, examples, notebooks, and what `tokenprune new-plugin` writes."""
    found = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("plugins/**/*.py"))}
    for page in PAGES:
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)):
            found[f"{page.relative_to(ROOT)}-{i}"] = code
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        found[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    templates = "\n".join(path.read_text() for path in ROOT.glob("tokenprune/cli/templates/*/*.py.txt"))
    found["new-plugin"] = "\n".join(re.findall(r"^from tokenprune[\w.]* import [\w, ]+$", templates, flags=re.M))
    assert found["new-plugin"]
    return found


CODE = {where: code for where, code in sources().items() if "tokenprune" in code}


@pytest.mark.parametrize("where", CODE)
def test_what_is_built_on_tokenprune_uses_public_names(where: str) -> None:
    """A name that is needed becomes public by a line in docs/api.md, and is promised from then on."""
    assert [name for name in used(CODE[where]) if not public(name)] == []


def test_pages_speak_of_public_names() -> None:
    for page in PAGES:
        if page.name not in INSIDE:
            named = re.findall(r"`(tokenprune(?:\.\w+)+)[`(]", page.read_text())
            assert [name for name in named if not public(name)] == [], page.name


def test_every_listed_name_is_there_and_says_what_it_is() -> None:
    assert len(LISTED) == len(set(LISTED)) > 40
    for name in LISTED:
        assert find(name) is not None


def test_what_import_tokenprune_offers_is_listed() -> None:
    assert {f"tokenprune.{name}" for name in tokenprune.__all__} <= {
        *LISTED, "tokenprune.hookimpl", "tokenprune.TokenpruneError"
    }  # fmt: skip
    assert public("tokenprune.errors.TokenpruneError")


def test_the_test_sees_what_is_not_public() -> None:
    assert list(used("import tokenprune\ntokenprune.engine.Engine")) == ["tokenprune", "tokenprune.engine"]
    assert list(used("from tokenprune import ops as o\no._mix(1)")) == ["tokenprune.ops", "tokenprune.ops._mix"]
    assert not public("tokenprune.decoder.forward")
    assert not public("tokenprune.ops._mix")
    assert not public("tokenprune.ops.annotations")  # of __future__
    assert not public("tokenprune.builtin.schedules.Pyramid")
    assert public("tokenprune.ops.fold")
    assert len(CODE) > 30
