"""What is registered is documented, and what the documents show is true."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

import tokenprune.errors as errors
from tokenprune.cli import app
from tokenprune.recipe import load, presets, registered
from tokenprune.registry import KINDS, registry

ROOT = Path(__file__).parent.parent
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = [
    (kind, name)
    for kind in KINDS
    for name, entry in registry().entries[kind].items()
    if entry.distribution == "tokenprune-mllm" and kind != "recipe"
]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_registered_name_has_its_heading(kind: str, name: str) -> None:
    assert f"### {kind} `{name}`" in REFERENCE


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_everything_registered_says_what_it_does(kind: str, name: str) -> None:
    assert len((registry().entries[kind][name].thing.__doc__ or "").strip()) > 20


@pytest.mark.parametrize("name", registered())
def test_every_recipe_is_listed_with_its_presets(name: str) -> None:
    row = next(line for line in REFERENCE.splitlines() if line.startswith(f"| `{name}`"))
    for preset in presets(name):
        assert f"`@{preset}`" in row
        load(f"{name}@{preset}")


def test_every_error_is_explained() -> None:
    ours = [name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)]
    assert len(ours) > 5
    for name in ours:
        assert f"`{name}`" in REFERENCE


def test_every_command_is_listed() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"ls", "show", "check", "generate", "explain", "calibrate", "eval", "demo"} <= set(names)
    for name in names:
        assert f"`tokenprune {name}" in REFERENCE


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for i, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)):
            found.append((f"{page.name}-{i}", code))
    return found


@pytest.mark.parametrize(("where", "code"), blocks("yaml"), ids=[where for where, _ in blocks("yaml")])
def test_yaml_in_the_docs_loads(where: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(code)
    assert load(path).passes


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=[where for where, _ in blocks("python")])
def test_python_in_the_docs_runs(where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bundled model, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(code)
    assert "__file__" in runpy.run_path("block.py")


def test_links_between_pages_lead_somewhere() -> None:
    links = 0
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            links += 1
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert links > 5


@pytest.mark.parametrize("target", ["demo", "web", "test", "test-eval", "test-web", "test-floor"])
def test_the_makefile_has_what_the_readme_says(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_ci_runs_the_readme_command_only() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert shlex.split(lines[-1]) == ["make", "test"]
    assert len(lines) == 3  # strict shell, the right folder, make test
