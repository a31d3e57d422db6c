"""`tokenprune new-plugin`: a distribution to start from."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ..errors import TokenpruneError

FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "tokenprune-$name"
version = "0.1.0"
description = "The scorer $name for tokenprune."
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["tokenprune-mllm"]

[project.optional-dependencies]
test = ["tokenprune-mllm[contract]"]

[project.entry-points.tokenprune]
$name = "$module"

[tool.hatch.build.targets.wheel]
include = ["$module.py", "$module.yaml"]

[tool.pytest.ini_options]
testpaths = ["tests"]
""",
    "$module.py": '''\
"""The scorer `$name` for tokenprune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tokenprune import Scorer, Seen, hookimpl


@dataclass(frozen=True)
class $cls(Scorer):
    """Keep the tokens with the largest hidden states."""

    equivariant = True  # scores do not depend on the order in which tokens are listed: the contract checks it
    order: float = 2.0  # fields are YAML keys; their types are checked

    def __post_init__(self) -> None:
        if not self.order > 0:
            raise ValueError(f"order must be > 0, got {self.order}")

    def score(self, seen: Seen) -> torch.Tensor:
        return seen.hidden.float().norm(p=self.order, dim=-1)  # n d -> n, higher stays


@hookimpl
def tokenprune_scorers() -> dict[str, type[Scorer]]:
    return {"$name": $cls}


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {"$name": Path(__file__).with_suffix(".yaml")}
''',
    "$module.yaml": """\
name: $name
about: The tokens with the largest hidden states.
prune:
  - scorer: {name: $name}
    schedule: {name: fixed, layer: 2, keep: 1/3}
""",
    "tests/test_$module.py": '''\
from __future__ import annotations

import pytest
import torch
from $module import $cls

from tokenprune import Seen
from tokenprune.contract import test_scorer


class TestContract(test_scorer.TestScorer):
    """What every scorer must do, in all model families."""

    parts = ("$name",)


def test_it_keeps_the_largest() -> None:
    seen = Seen.of(keep=2, hidden=torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))
    assert $cls().score(seen).topk(seen.keep).indices.tolist() == [1, 2]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="order must be > 0"):
        $cls(order=0)
''',
    "README.md": """\
# tokenprune-$name

The scorer `$name` for tokenprune (`tokenprune-mllm`): one file, `$module.py`, a recipe, `$module.yaml`, and one entry
point.

```console
$$ pip install -e ".[test]"
$$ tokenprune ls scorers         # lists $name
$$ pytest                        # the contract of scorers, and tests of your own
$$ tokenprune demo -r $name
$$ tokenprune sweep -r $name -r random -r fastv --limit 20
```

Write your method into `score`, say in the docstring and in the recipe what it keeps and where it is published, and
change the tests that speak of the example. The leaderboard of tokenprune's repository has every registered recipe:
`python benchmarks/pico/leaderboard.py`.
""",
}


def new_plugin(
    name: Annotated[str, typer.Argument(help="The scorer's name in recipes: lowercase letters, digits and hyphens.")],
    output: Annotated[Path | None, typer.Option(help="The folder to write; by default tokenprune-NAME.")] = None,
) -> None:
    """Write a plugin distribution of your own: a scorer, its entry point, tests and a README."""
    name = name.removeprefix("tokenprune-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise typer.BadParameter(
            f"expected up to 40 lowercase letters, digits and single hyphens, a letter first (loud), got {name!r}"
        )
    from ..registry import registry

    entries = [entry for found in registry().entries.values() for entry in found.values()]
    for entry in entries:
        if (entry.kind, entry.name) == ("scorer", name) or entry.distribution == f"tokenprune-{name}":
            raise typer.BadParameter(
                f"{entry.distribution} brings the {entry.kind} {entry.name!r} already: choose another name"
            )
    folder = output or Path(f"tokenprune-{name}")
    words = {"name": name, "module": f"tokenprune_{name.replace('-', '_')}", "cls": _class(name)}
    _write(folder, {Template(path).substitute(words): Template(text).substitute(words) for path, text in FILES.items()})
    print(f"{folder} is a plugin with the scorer {name}. Next:\n  pip install -e '{folder}[test]' && pytest {folder}")


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-")) + "Scorer"


def _write(folder: Path, files: dict[str, str]) -> None:
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
