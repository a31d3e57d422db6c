"""`tokenprune new-plugin`: a distribution to start from, made of the templates beside this file."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Annotated

import typer

from ..errors import TokenpruneError, UnsupportedModelError

KINDS = ("scorer", "scheduler", "merger", "adapter")
TEMPLATES = Path(__file__).parent / "templates"
"""A folder for each kind, and what all have; `$words` are those of `_words`."""


def new_plugin(
    name: Annotated[
        str, typer.Argument(help="The name in recipes, or of the family: lowercase letters, digits and hyphens.")
    ],
    kind: Annotated[str, typer.Option(help=f"What it brings: {', '.join(KINDS)}.")] = "scorer",
    output: Annotated[Path | None, typer.Option(help="The folder to write; by default tokenprune-NAME.")] = None,
) -> None:
    """Write a plugin distribution of your own: a scorer, say, its entry point, tests and a README."""
    if kind not in KINDS:
        raise typer.BadParameter(f"expected one of {', '.join(KINDS)}, got {kind}", param_hint="--kind")
    name = name.removeprefix("tokenprune-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise typer.BadParameter(
            f"expected up to 40 lowercase letters, digits and single hyphens, a letter first (loud), got {name!r}"
        )
    files = _files(name, kind)
    if taken := _taken(name, kind, files):
        raise typer.BadParameter(taken)
    folder = output or Path(f"tokenprune-{name}")
    write(folder, files)
    print(f"{folder} is a plugin with the {kind} {name}. Next:\n  pip install -e '{folder}[test]' && pytest {folder}")


def _taken(name: str, kind: str, files: dict[str, str]) -> str | None:
    """Why a plugin of this name cannot be registered beside those that are, or None."""
    from ..registry import registry

    found = registry()
    brings = {kind, "recipe"} if any(path.endswith(".yaml") for path in files) else {kind}
    entries = [entry for known in found.entries.values() for entry in known.values()]
    entries += [entry for known in found.contested.values() for rivals in known.values() for entry in rivals]
    for entry in entries:
        if (entry.kind in brings and entry.name == name) or entry.distribution == f"tokenprune-{name}":
            return f"{entry.distribution} brings the {entry.kind} {entry.name!r} already: choose another name"
    for plugin in found.broken:
        if plugin.distribution == f"tokenprune-{name}":
            return f"{plugin.distribution} is installed already, and broken: choose another name, or uninstall it"
    for model_type in re.findall(r'^    model_types = \("(\w+)",\)', "\n".join(files.values()), flags=re.M):
        with suppress(UnsupportedModelError):  # nobody's yet
            adapter = found.adapter(SimpleNamespace(model_type=model_type))
            return (
                f"{found.origin('adapter', type(adapter))} answers for the model type {model_type!r} already, and "
                "so would the example: give that one its own family's type, or leave it out of TOKENPRUNE_PLUGINS"
            )
    return None


def _files(name: str, kind: str) -> dict[str, str]:
    """Texts by path."""
    words = _words(name, kind)
    module = words["module"]
    places = {"module.py": f"{module}.py", "tests.py": f"tests/test_{module}.py", "recipe.yaml": f"{module}.yaml"}
    templates = [TEMPLATES / "pyproject.toml.txt", *sorted((TEMPLATES / kind).glob("*.txt"))]
    return {
        places.get(template.stem, template.stem): Template(template.read_text()).substitute(words)
        for template in templates
    }


def _words(name: str, kind: str) -> dict[str, str]:
    """What stands for `$name`, `$kind`, `$module` and `$cls`: none of them a word of Python's."""
    module = f"tokenprune_{name.replace('-', '_')}"
    cls = "".join(word.capitalize() for word in [*name.split("-"), kind])
    return {"name": name, "kind": kind, "module": module, "cls": cls}


def write(folder: Path, files: dict[str, str]) -> None:
    """The whole folder or nothing. Raises TokenpruneError."""
    if folder.exists() or folder.is_symlink():
        raise TokenpruneError(f"{folder} exists already: remove it, or give another place with --output")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".new-plugin-") as beside:
            new = Path(beside) / "plugin"
            for path, text in files.items():
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                (new / path).write_text(text)
            new.rename(folder)
    except OSError as error:
        raise TokenpruneError(f"cannot write {folder}: {error.strerror or error}. Give a place that can be") from error
