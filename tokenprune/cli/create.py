"""`tokenprune new-plugin`: a distribution to start from."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Annotated

import typer

from ..errors import TokenpruneError, UnsupportedModelError


@dataclass(frozen=True)
class Kind:
    """What the plugins of a kind have of their own; `$words` are those of `_words`.

    Attributes:
        brings: of what kinds something of its name is registered.
        module: the module.
        tests: its tests.
        todo: what its author has to write, for the README.
        run: more commands for the README.
        recipe: the passes of its recipe, if it has one.
        about: what the recipe does.
        model_type: what its adapter answers for.
    """

    brings: tuple[str, ...]
    module: str
    tests: str
    todo: str
    run: str = ""
    recipe: str = ""
    about: str = ""
    model_type: str | None = None


PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "tokenprune-$name"
version = "0.1.0"
description = "The $kind $name for tokenprune."
readme = "README.md"
requires-python = ">=3.10"
dependencies = []  # tokenprune-mllm, which comes from its checkout: on an index that name is not its own yet

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.tokenprune]
$name = "$module"

[tool.hatch.build.targets.wheel]
include = ["$module.*"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """\
# tokenprune-$name

The $kind `$name` for tokenprune: one file, `$module.py`,$with_recipe and one entry point.
Where tokenprune is installed:

```console
$$ pip install -e ".[test]"
$$ tokenprune ls ${kind}s    # lists $name
$$ pytest    # the contract of ${kind}s, and tests of your own
$run```

$todo
"""

RECIPE = """\
name: $name
about: $about
prune:
$recipe"""

RECIPE_HOOK = """

@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {"$name": Path(__file__).with_suffix(".yaml")}
"""

SCORER = Kind(
    module='''\
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
'''
    + RECIPE_HOOK,
    tests='''\
from __future__ import annotations

import pytest
import torch
from tokenprune import Seen
from tokenprune.contract import test_scorer

from $module import $cls


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
    recipe="""\
  - scorer: {name: $name}
    schedule: {name: fixed, layer: 2, keep: 1/3}
""",
    about="The tokens with the largest hidden states.",
    run="""\
$$ tokenprune demo -r $name
$$ tokenprune sweep -r $name -r random -r fastv --limit 20
""",
    todo="""\
Write your method into `score`, say in the docstring and in the recipe what it keeps and where it is published, and
change the tests that speak of the example. The leaderboard of tokenprune's repository has every registered recipe:
`python benchmarks/pico/leaderboard.py`.""",
    brings=("scorer", "recipe"),
)

SCHEDULER = Kind(
    module='''\
"""The schedule `$name` for tokenprune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenprune import PlanInput, Scheduler, hookimpl
from tokenprune.amounts import Budget, Layer, check_budget, check_layer, resolve_budget, resolve_layer


@dataclass(frozen=True)
class $cls(Scheduler):
    """`keep` tokens stay after `layer`, and half as many from the middle of the blocks after it on."""

    layer: Layer = 2  # fields are YAML keys; a number of blocks, or a share of them such as "2/32"
    keep: Budget = "1/3"  # a number of tokens, or a share of the prompt's

    def __post_init__(self) -> None:
        check_layer(self.layer)
        check_budget(self.keep)

    def plan(self, shape: PlanInput) -> dict[int, int]:
        first = resolve_layer(self.layer, shape.depth)  # LayerError where the model has no such layer
        kept = resolve_budget(self.keep, shape.visual)
        plan: dict[int, int] = {}
        left = shape.visual
        for layer, count in ((first, kept), ((first + shape.depth) // 2, kept // 2)):
            if count < left:  # a stage drops something, or is none
                plan[layer] = left = count
        return plan


@hookimpl
def tokenprune_schedulers() -> dict[str, type[Scheduler]]:
    return {"$name": $cls}
'''
    + RECIPE_HOOK,
    tests='''\
from __future__ import annotations

import pytest
from tokenprune import PlanInput
from tokenprune.contract import test_scheduler

from $module import $cls


class TestContract(test_scheduler.TestScheduler):
    """What every schedule must do, for models of any depth and prompts of any length."""

    parts = ("$name",)


def test_it_keeps_what_it_says() -> None:
    assert $cls(layer=2, keep=16).plan(PlanInput(depth=8, visual=144)) == {2: 16, 5: 8}
    assert $cls(layer=0, keep="1/4").plan(PlanInput(depth=4, visual=64)) == {0: 16, 2: 8}


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="a budget is a number of tokens"):
        $cls(keep="many")
''',
    recipe="""\
  - scorer: {name: attention}
    schedule: {name: $name, layer: 2, keep: 1/3}
""",
    about="A third of the tokens after layer 2, and half of these later, by attention.",
    run="""\
$$ tokenprune explain $name
$$ tokenprune demo -r $name
""",
    todo="""\
Write your schedule into `plan`, say in the docstring and in the recipe what it keeps and where it is published, and
change the tests that speak of the example.""",
    brings=("scheduler", "recipe"),
)

MERGER = Kind(
    module='''\
"""The merger `$name` for tokenprune."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenprune import Merger, Seen, hookimpl


def $function(hidden: torch.Tensor, kept: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Average each kept token with the dropped ones that follow it in reading order.

    `hidden` (n d) are the visual tokens' states, `kept` (k) says which stay, ascending; of the n rows given back only
    the kept ones are used.
    """
    if not len(kept):
        return hidden
    order = torch.arange(len(hidden), device=hidden.device)
    home = kept[(torch.searchsorted(kept, order, right=True) - 1).clamp_min(0)]  # n: the kept token each goes to
    ones = torch.ones(len(hidden), 1, device=hidden.device)
    total = torch.zeros_like(hidden, dtype=torch.float).index_add(0, home, hidden.float())
    count = torch.zeros_like(ones).index_add(0, home, ones)
    return (total / count.clamp_min(1)).to(hidden.dtype)


@hookimpl
def tokenprune_mergers() -> dict[str, Merger]:
    return {"$name": $function}
'''
    + RECIPE_HOOK,
    tests='''\
from __future__ import annotations

import torch
from tokenprune import Seen
from tokenprune.contract import test_merger

from $module import $function


class TestContract(test_merger.TestMerger):
    """What every merger must do, in all model families, with the scorers that recipes pair it with."""

    parts = ("$name",)


def test_dropped_tokens_go_into_the_one_before_them() -> None:
    hidden = torch.tensor([[1.0], [3.0], [5.0], [7.0], [9.0]])  # the first goes into the first kept one
    merged = $function(hidden, torch.tensor([1, 3]), Seen.of(keep=2, hidden=hidden))
    assert merged[[1, 3]].tolist() == [[3.0], [8.0]]
''',
    recipe="""\
  - scorer: {name: attention}
    schedule: {name: fixed, layer: 2, keep: 1/3}
    merge: $name
""",
    about="The tokens with the most attention, each with the dropped ones that follow it.",
    run="""\
$$ tokenprune demo -r $name
$$ tokenprune sweep -r $name -r fastv --budget 1/2 --limit 20
""",
    todo="""\
Write your method into `$function`, say in the docstring and in the recipe what it merges and where it is published,
pair it in the recipe with the scorer that it belongs to, and change the test that speaks of the example.""",
    brings=("merger", "recipe"),
)

ADAPTER = Kind(
    module='''\
"""The adapter `$name` for tokenprune. It is an example that works, for VipLLaVA: make it that of your family."""

from __future__ import annotations

from tokenprune import Adapter, hookimpl
from tokenprune import Adapter


class $cls(Adapter):
    """`VipLlavaForConditionalGeneration`."""

    model_types = ("vipllava",)  # TODO: config.model_type of your family
    placeholders = ("image_token_id",)  # TODO: config attributes with the token ids that pictures and videos replace


@hookimpl
def tokenprune_adapters() -> dict[str, type[Adapter]]:
    return {"$name": $cls}
''',
    tests='''\
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenprune.contract import test_adapter
from tokenprune.contract.families import PAD, VOCAB, Family, Prompt, text_config, vision_config

IMAGE, TOKENS = 5, 16  # the placeholder's id, and visual tokens of a picture


def build() -> transformers.PreTrainedModel:
    """A tiny model of the family, weights random, at least four blocks deep."""  # TODO: yours
    config = transformers.VipLlavaConfig(
        vision_config=vision_config(),
        text_config=transformers.LlamaConfig(**text_config()),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )
    return transformers.VipLlavaForConditionalGeneration(config)


def inputs(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the family's processor would give for a batch: ids padded on the left, placeholders where pictures go.

    A prompt is a seed and its segments: a number of text tokens, or "image".
    """  # TODO: yours
    rows: list[list[int]] = []
    pictures = []
    for seed, segments in prompts:
        generator = torch.Generator().manual_seed(seed)
        row: list[int] = []
        for segment in segments:
            if segment == "image":
                row += [IMAGE] * TOKENS
                pictures.append(torch.randn(3, 32, 32, generator=generator))
            else:
                row += torch.randint(10, VOCAB, (int(segment),), generator=generator).tolist()
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.stack(pictures)}


class TestContract(test_adapter.TestAdapter):
    """That the adapter's answers are what the model does, and that pruning equals masking."""

    parts = ("$name",)
    families = (Family("$name", build, inputs),)
''',
    todo="""\
Fill in what is marked TODO: in the module the model type and the placeholders of your family, in the tests a tiny model
of it and its inputs. Then run the tests. Each compares an answer of the adapter with what the model does; what fails
says what to override (docs/add-a-family.md of tokenprune lists them):

| what fails | is answered by |
|---|---|
| `blocks_are_all_and_in_order` | `base`, `decoder`, `blocks` |
| `visual_columns_are_where_pictures_go` | `placeholders`, or `visual` |
| `projections_are_what_the_model_computes` | `projections`, `project`, `head_size` |
| `attention_is_the_models_own` | `rotate`, `scaling` |
| `the_norm_is_the_decoders_last`, `rotary_tables_are_the_models_own` | `norm`; `rotary` (None for M-RoPE) |
| `pruning_equals_masking` alone | something in the decoder that pruning cannot follow: `refuse` says what |

What is skipped is optional: `boxes` and `window` for overlays, `vision_adapter` for methods that read the vision tower
or prune inside it.""",
    brings=("adapter",),
    model_type="vipllava",
)

KINDS = {"scorer": SCORER, "scheduler": SCHEDULER, "merger": MERGER, "adapter": ADAPTER}


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
    made = KINDS[kind]
    if taken := _taken(name, made):
        raise typer.BadParameter(taken)
    folder = output or Path(f"tokenprune-{name}")
    _write(folder, _files(name, kind, made))
    print(f"{folder} is a plugin with the {kind} {name}. Next:\n  pip install -e '{folder}[test]' && pytest {folder}")


def _taken(name: str, made: Kind) -> str | None:
    """Why a plugin of this name cannot be registered beside those that are, or None."""
    from ..registry import registry

    found = registry()
    entries = [entry for known in found.entries.values() for entry in known.values()]
    entries += [entry for known in found.contested.values() for rivals in known.values() for entry in rivals]
    for entry in entries:
        if (entry.kind in made.brings and entry.name == name) or entry.distribution == f"tokenprune-{name}":
            return f"{entry.distribution} brings the {entry.kind} {entry.name!r} already: choose another name"
    for plugin in found.broken:
        if plugin.distribution == f"tokenprune-{name}":
            return f"{plugin.distribution} is installed already, and broken: choose another name, or uninstall it"
    if made.model_type:
        with suppress(UnsupportedModelError):  # nobody's yet
            adapter = found.adapter(SimpleNamespace(model_type=made.model_type))
            return (
                f"{found.origin('adapter', type(adapter))} answers for the model type {made.model_type!r} already, and "
                "so would the example: give that one its own family's type, or leave it out of TOKENPRUNE_PLUGINS"
            )
    return None


def _files(name: str, kind: str, made: Kind) -> dict[str, str]:
    """Texts by path."""
    words = _words(name, kind)

    def filled(text: str, **more: str) -> str:
        return Template(text).substitute(words, **more)

    files = {
        "pyproject.toml": filled(PYPROJECT),
        f"{words['module']}.py": filled(made.module),
        f"tests/test_{words['module']}.py": filled(made.tests),
        "README.md": filled(
            README,
            run=filled(made.run),
            todo=filled(made.todo),
            with_recipe=f" a recipe, `{words['module']}.yaml`," if made.recipe else "",
        ),
    }
    if made.recipe:
        files[f"{words['module']}.yaml"] = filled(RECIPE, about=made.about, recipe=filled(made.recipe))
    return files


def _words(name: str, kind: str) -> dict[str, str]:
    """What stands for `$name`, `$kind`, `$module`, `$cls` and `$function`: none of them a word of Python's."""
    module = f"tokenprune_{name.replace('-', '_')}"
    cls = "".join(word.capitalize() for word in [*name.split("-"), kind])
    return {"name": name, "kind": kind, "module": module, "cls": cls, "function": f"merge_{name.replace('-', '_')}"}


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
