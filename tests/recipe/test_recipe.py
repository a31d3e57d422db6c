"""Recipes: what is shipped, what overrides may do, and every way to get one wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tokenprune import Scorer
from tokenprune.builtin.mergers import Nearest
from tokenprune.builtin.schedules import Ecl, Fixed, Pyramid
from tokenprune.builtin.scorers.attention import Attention
from tokenprune.builtin.scorers.diversity import Diversity
from tokenprune.builtin.scorers.entropy import Entropy
from tokenprune.builtin.scorers.random import Random
from tokenprune.errors import RecipeError, TokenpruneError, UnknownNameError
from tokenprune.recipe import MAX_BYTES, Pass, Recipe, load, presets, registered
from tokenprune.registry import registry

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))
GOOD = """
name: mine
prune:
  - scorer: entropy
    schedule: {name: fixed, layer: 2, keep: 5}
presets:
  small: [prune.0.schedule.keep=3]
"""


def a_pass(**changes: Any) -> dict[str, Any]:
    return {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 5}, **changes}


def a_recipe(**changes: Any) -> dict[str, Any]:
    return {"prune": [a_pass(**changes)]}


def problems(given: Any, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(given, *overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def made(content: str | bytes, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return made


# -- shipped ---------------------------------------------------------------------------------------------------------


def test_the_shipped_recipes_are_the_files_in_configs() -> None:
    assert {"entropyprune", "fastv", "pyramiddrop", "divprune", "random"} <= set(NAMES)
    mine = [e.name for e in registry().entries["recipe"].values() if e.distribution == "tokenprune-mllm"]
    assert mine == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load(name).name == name
    assert load(registered()[name]) == load(name)


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in NAMES for preset in presets(name)])
def test_every_preset_loads_and_changes_its_recipe(name: str, preset: str) -> None:
    made = load(f"{name}@{preset}")
    assert made.passes != load(name).passes
    assert made == load(f"{name}@{preset}", *presets(name)[preset])


def test_the_shipped_recipes_say_what_their_papers_say() -> None:
    assert load("entropyprune@192").passes == (Pass(Entropy(), Ecl(average=192)),)
    assert load("fastv").passes == (Pass(Attention(), Fixed(layer=2, keep=0.5)),)
    assert load("fastv@128").passes == (Pass(Attention(), Fixed(layer=2, average=128)),)
    pyramid = Pyramid(layers=("8/32", "16/32", "24/32"), ratio=0.5)
    assert load("pyramiddrop").passes == (Pass(Attention(block="next"), pyramid, positions="compact"),)
    assert load("divprune@64").passes == (Pass(Diversity(), Fixed(layer=0, keep=64), positions="compact"),)
    assert load("random@192").passes == (Pass(Random(0), Ecl(average=192)),)


# -- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_reach_into_a_scorer_given_as_a_bare_string() -> None:
    made = load(a_recipe(), "prune.0.scorer.alpha=2", "prune.0.scorer.states=key")
    assert made.passes[0].scorer == Entropy(states="key", alpha=2.0)


def test_overrides_change_the_schedule_by_name() -> None:
    made = load("entropyprune@192", "prune.0.schedule.name=fixed", "prune.0.schedule.layer=5")
    assert made.passes[0].schedule == Fixed(layer=5, average=192)


@pytest.mark.parametrize("line", ["prune.0.scorer=random", "prune.0.scorer={name: random}"])
def test_overrides_replace_a_whole_scorer(line: str) -> None:
    assert load("entropyprune", line).passes[0].scorer == Random()


@pytest.mark.parametrize(
    "lines",
    [
        ("prune.0.schedule.keep=null", "prune.0.schedule.average=9"),
        ("prune.0.schedule.average=9", "prune.0.schedule.keep=null"),
    ],
)
def test_null_removes_a_setting_in_either_order(lines: tuple[str, str]) -> None:
    assert load(a_recipe(), *lines).passes[0].schedule == Fixed(layer=2, average=9)


def test_later_overrides_win_and_presets_come_first(write: Any) -> None:
    path = f"{write(GOOD)}@small"
    assert load(path).passes[0].schedule == Fixed(layer=2, keep=3)
    lines = ("prune.0.schedule.keep=7", "prune.0.schedule.keep=8")
    assert load(path, *lines).passes[0].schedule == Fixed(layer=2, keep=8)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("prune.0.schedule.layer=16/32", "layer", "16/32"),
        ("prune[0].schedule.layer=3", "layer", 3),
        ("prune.0.schedule.keep=0.25", "keep", 0.25),
        ("prune.0.schedule.keep=1/3", "keep", "1/3"),
        ("prune.0.schedule.keep=1", "keep", 1),
    ],
)
def test_override_values_are_read_as_yaml(line: str, field: str, value: Any) -> None:
    found = getattr(load(a_recipe(), line).passes[0].schedule, field)
    assert (found, type(found)) == (value, type(value))


def test_overrides_read_lists_and_other_passes() -> None:
    given = {"prune": [a_pass(), a_pass(schedule={"name": "pyramid", "layers": [3, 4], "ratio": 0.5})]}
    made = load(given, "prune.1.schedule.layers=[8/32, 5]", "prune.1.positions=compact", "name=other")
    assert made.passes[1].schedule == Pyramid(layers=("8/32", 5), ratio=0.5)
    assert [step.positions for step in made.passes] == ["original", "compact"]
    assert made.name == "other"


def test_an_override_of_a_scorer_setting_leaves_its_other_settings_alone() -> None:
    """Budgets are alternatives in a schedule only."""
    given = {"prune": [a_pass(scorer={"name": "entropy", "ratio": 1, "keep": 2})]}
    assert problems(given, "prune.0.scorer.keep=3") == [
        f"prune.0.scorer.{key}: unknown key; Entropy has states, normalize, prefer, alpha, top_k"
        for key in ("ratio", "keep")
    ]


def test_a_mapping_is_not_changed_by_overrides() -> None:
    given = {**a_recipe(), "presets": {"x": ["name=y"]}}
    before = copy.deepcopy(given)
    load(given, "prune.0.schedule.keep=1", "prune.0.scorer.alpha=2")
    assert given == before


NO_PATH = ("", "=", "=5", "keep", "prune.x=1", "prune.7.scorer=random", "prune..x=1", "nmae=x", "name.x=5")
NO_YAML = (
    "prune.0.scorer={",
    "prune.0.scorer=[}",
    "name=!!python/name:os.system",
    "name=\x00",
    "prune.0.scorer={[1]: 2}",
)
NO_VALUE = ("name=2020-01-01", "name=&a [*a]", "name=${", "prune=null", "prune=5", "prune=[]", "prune.0=entropy")


@pytest.mark.parametrize("line", [*NO_PATH, *NO_YAML, *NO_VALUE, "prune.0.scorer="])
def test_bad_overrides_are_recipe_errors(line: str) -> None:
    assert problems(a_recipe(), line)


@pytest.mark.parametrize("given", [a_recipe(schedule=None), a_recipe(schedule=[1]), {"prune": []}, {"prune": ["x"]}])
def test_budgets_of_a_schedule_that_is_not_there_are_told_in_our_words(given: dict[str, Any]) -> None:
    found = str(problems(given, "prune.0.schedule.keep=3"))
    assert "NoneType" not in found
    assert "positional" not in found


@pytest.mark.parametrize("thing", [object(), {1, 2}, date(2020, 1, 1), b"x" * 3, Entropy])
def test_things_that_are_no_settings_are_recipe_errors_with_overrides_too(thing: Any) -> None:
    assert problems(a_recipe(scorer=thing))
    assert problems(a_recipe(scorer=thing), "prune.0.schedule.keep=3")


def test_bad_overrides_come_all_at_once() -> None:
    found = problems(a_recipe(), "keep", "prune.9.scorer=random", "prune.0.schedule.keep=3", "name={")
    assert [problem.split(":")[0] for problem in found] == [
        "override 'keep'",
        "override 'prune.9.scorer=random'",
        "override 'name={'",
    ]


# -- unknown names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["entropiprune", "entropiprune@192"])
def test_unknown_recipes_say_what_was_meant(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"no recipe 'entropiprune': did you mean 'entropyprune'\?.*fastv"):
        load(name)


@pytest.mark.parametrize(("preset", "hint"), [("129", "did you mean '12[89]'|did you mean '192'"), ("tiny", "known")])
def test_unknown_presets_list_the_known_ones(preset: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no preset of fastv '{preset}': .*({hint}).*128, 192, 64"):
        load(f"fastv@{preset}")


def test_presets_of_a_recipe_without_any() -> None:
    assert presets("entropy-at-5") == {}
    with pytest.raises(UnknownNameError, match="known: none"):
        load("entropy-at-5@192")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scorer": "entropie"}, "prune.0.scorer.name: there is no scorer 'entropie': did you mean 'entropy'? "),
        ({"schedule": {"name": "fixt"}}, "prune.0.schedule.name: there is no scheduler 'fixt': did you mean 'fixed'? "),
        ({"merge": "neerest"}, "prune.0.merge: there is no merger 'neerest': did you mean 'nearest'? "),
    ],
)
def test_unknown_parts_say_where_and_what_was_meant(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems(a_recipe(**changes))
    assert problem.startswith(expected)


# -- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_come_at_once_with_their_paths() -> None:
    given = {
        "nmae": "x",
        "prune": [
            {"scorer": {"name": "entropy", "alpa": 2}, "schedule": {"name": "fixed", "keep": 5}},
            {"scorer": "zzz", "schedule": {"name": "pyramid", "layers": "all", "ratio": 0.5}, "merge": "x"},
            {"schedule": "ecl", "positions": "other"},
            5,
        ],
    }
    assert [problem.split(":")[0] for problem in problems(given)] == [
        "nmae",
        "prune.0.scorer.alpa",
        "prune.0.schedule.layer",
        "prune.1.scorer.name",
        "prune.1.schedule.layers",
        "prune.1.merge",
        "prune.2.scorer",
        "prune.2.schedule",
        "prune.2.positions",
        "prune.3",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scorer": {"name": "entropy", "alpha": "two"}}, "prune.0.scorer.alpha: expected float, got 'two'"),
        ({"scorer": {"name": "entropy", "alpha": True}}, "prune.0.scorer.alpha: expected float, got True"),
        ({"scorer": {"name": "entropy", "top_k": 2.5}}, "prune.0.scorer.top_k: expected int or null, got 2.5"),
        ({"scorer": {"name": "random", "seed": "0"}}, "prune.0.scorer.seed: expected int, got '0'"),
        ({"scorer": {"name": "random", "seed": False}}, "prune.0.scorer.seed: expected int, got False"),
        (
            {"scorer": {"name": "entropy", "states": "value"}},
            "prune.0.scorer.states: expected query | key, got 'value'",
        ),
        ({"scorer": {"name": "entropy", "states": ["query"]}}, "prune.0.scorer.states: expected query | key"),
        ({"scorer": {"name": "entropy", "states": None}}, "prune.0.scorer.states: expected query | key, got None"),
        (
            {"scorer": {"name": "attention", "queries": [1, "x"]}},
            "prune.0.scorer.queries: expected last | text or a list",
        ),
        ({"scorer": {"name": "attention", "queries": []}}, "prune.0.scorer: queries must be last, text or a list"),
        ({"scorer": {"name": "entropy", "alpha": -1}}, "prune.0.scorer: alpha must be > 0, got -1"),
        ({"scorer": {"name": "entropy", "alpha": 10**400}}, "prune.0.scorer"),
        ({"scorer": {"name": "entropy", 3: 4}}, "prune.0.scorer.3: unknown key"),
        ({"scorer": {"name": 5}}, "prune.0.scorer: expected a name"),
        ({"scorer": ["entropy"]}, "prune.0.scorer: expected a name or a mapping with a name, got ['entropy']"),
        ({"scorer": None}, "prune.0.scorer: expected a name or a mapping with a name, got None"),
        ({"scorer": Fixed(layer=1, keep=2)}, "prune.0.scorer: expected a name"),
        ({"scorer": Entropy}, "prune.0.scorer: expected a name"),
        ({"schedule": Random()}, "prune.0.schedule: expected a name"),
        ({"schedule": {"name": "fixed", "layer": 2.0, "keep": 1}}, "prune.0.schedule.layer: expected int or str"),
        ({"schedule": {"name": "fixed", "layer": True, "keep": 1}}, "prune.0.schedule.layer: expected int or str"),
        (
            {"schedule": {"name": "fixed", "layer": 2, "keep": True}},
            "prune.0.schedule.keep: expected int or float or str",
        ),
        (
            {"schedule": {"name": "fixed", "layer": 2, "keep": [1]}},
            "prune.0.schedule.keep: expected int or float or str",
        ),
        ({"schedule": {"name": "fixed", "layer": 2, "keep": 1.5}}, "prune.0.schedule: a budget is"),
        ({"schedule": {"name": "fixed", "layer": 2}}, "prune.0.schedule: give exactly one of keep, average; got none"),
        ({"schedule": {"name": "fixed", "keep": 2}}, "prune.0.schedule.layer: required, not given"),
        ({"schedule": {"name": "pyramid", "layers": 3, "ratio": 0.5}}, "prune.0.schedule.layers: expected a list of"),
        (
            {"schedule": {"name": "ecl", "keep": 2, "layer": 5}},
            "prune.0.schedule.layer: unknown key; Ecl has keep, average",
        ),
        ({"merge": ["nearest"]}, "prune.0.merge: "),
        ({"merge": {"name": "nearest", "far": 1}}, "prune.0.merge.far: "),
        ({"merge": 5}, "prune.0.merge: "),
        ({"positions": "kept"}, "prune.0.positions: expected original | compact, got 'kept'"),
        ({"positions": None}, "prune.0.positions: expected original | compact, got None"),
        ({"tower": "vision"}, "prune.0: Entropy ranks tokens of a prompt"),
    ],
)
def test_wrong_settings_say_where_what_was_expected_and_what_came(changes: dict[str, Any], expected: str) -> None:
    found = problems(a_recipe(**changes))
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "prune: expected a list"),
        ({"prune": None}, "prune: expected a list"),
        ({"prune": []}, "prune: expected a list"),
        ({"prune": "entropyprune"}, "prune.0: expected a mapping with scorer and schedule, got 'entropyprune'"),
        ({"prune": 5}, "prune.0: expected a mapping"),
        ({"prune": [None]}, "prune.0: expected a mapping"),
        ({**a_recipe(), 5: 6}, "5: unknown key"),
        ({**a_recipe(), "name": None}, "name: expected str, got None"),
        ({**a_recipe(), "name": ["x"]}, "name: expected str, got ['x']"),
    ],
)
def test_wrong_recipes_say_what_was_expected(given: dict[Any, Any], expected: str) -> None:
    assert problems(given)[0].startswith(expected)


def test_an_empty_recipe_object_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least one pass"):
        Recipe("empty", ())


# -- hostile files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nothing",
        "- a\n- b",
        "just text",
        "5",
        "[",
        "{",
        "a: b: c",
        "\tname: x",
        b"\x00\x01\x02",
        b"\xff\xfe\xfa\x80",
        b"\x89PNG\r\n\x1a\n",
        "name: x\nname: y\n" + GOOD,
        "name: &a [*a]",
        "prune: " + "[" * 4000 + "]" * 4000,
        "name: ${",
        "prune: !!python/object/apply:os.system ['touch pwned']",
        "prune: !!python/name:os.system",
        "prune: !custom 5",
    ],
)
def test_files_that_are_no_recipe_are_recipe_errors(
    content: str | bytes, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(write(content))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]  # nothing was run


def test_files_too_big_are_not_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(GOOD + "#" * MAX_BYTES)
    monkeypatch.setattr(OmegaConf, "load", lambda path: pytest.fail("was read"))
    assert problems(path) == [f"the file has {path.stat().st_size} bytes: a recipe has at most {MAX_BYTES}"]


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What OmegaConf resolved; `${spy:x}` is a resolver like any that a user's program may have registered."""
    calls: list[str] = []
    monkeypatch.setenv("SECRET", "leaked")
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)  # renamed in 2.4
    register("spy", calls.append)
    yield calls
    OmegaConf.clear_resolver("spy")


INTERPOLATED = [
    ("name: ${%s}\n" + GOOD.replace("name: mine", ""), "name"),
    (GOOD.replace("keep: 5", "keep: '${%s}'"), "prune.0.schedule.keep"),
    (GOOD.replace("entropy", "${%s}"), "prune.0.scorer"),
    (GOOD.replace("{name: fixed, layer: 2, keep: 5}", "${%s}"), "prune.0.schedule"),
    ("name: x\nprune: ${%s}\n", "prune"),
    ("name: x\nprune: ['${%s}']\n", "prune.0"),
    (GOOD + "about: 'text ${%s} text'\n", "about"),
]
LINES: list[tuple[str, ...]] = [
    (),
    ("name=other",),
    ("prune.0.schedule.keep=4",),
    ("prune.0.schedule.average=4",),
    ("prune.0.scorer.alpha=2",),
    ("prune.0.schedule.layer=1", "prune.0.scorer=random", "about=y"),
]


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("what", ["oc.env:SECRET", "spy:x", "name"])
@pytest.mark.parametrize(("content", "path"), INTERPOLATED)
def test_interpolations_are_refused_and_never_resolved(
    content: str, path: str, what: str, lines: tuple[str, ...], write: Any, resolved: list[str]
) -> None:
    """Whether or not an override touches, replaces or passes through them."""
    found = problems(write(content % what), *lines)
    assert resolved == []
    assert "leaked" not in str(found)
    assert any(problem.startswith(path) and "interpolations are not read" in problem for problem in found)


@pytest.mark.parametrize(
    "line", ["name=${%s}", "prune.0.schedule.keep=${%s}", "prune.0.scorer=${%s}", "prune=${%s}", "${%s}=5"]
)
@pytest.mark.parametrize("what", ["oc.env:SECRET", "spy:x"])
def test_interpolations_in_overrides_are_refused_and_never_resolved(line: str, what: str, resolved: list[str]) -> None:
    found = problems(a_recipe(), line % what, "prune.0.scorer.alpha=2")
    assert resolved == []
    assert "leaked" not in str(found)


@pytest.mark.parametrize("lines", [(), ("name=y",)])
@pytest.mark.parametrize("text", ["${", "${oc.env:", "${}"])
def test_half_an_interpolation_in_a_mapping_is_a_recipe_error(text: str, lines: tuple[str, ...]) -> None:
    assert problems({**a_recipe(), "about": text}, *lines)


# -- presets of files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["[a]", "{p: null}", "{p: 5}", "{p: name=x}", "5", "{p: {a: b}}"])
def test_malformed_presets_are_recipe_errors(wrong: str, write: Any) -> None:
    path = write(GOOD.split("presets:")[0] + f"presets: {wrong}\n")
    found = problems(f"{path}@p")
    assert len(found) == 1
    assert found[0].startswith("presets")
    with pytest.raises(RecipeError):
        presets(str(path))


# -- files and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "deep/er/mine.yaml", "a@b/mine.yaml", "me@home.yaml"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_recipe_may_be_the_path_of_a_file(name: str, kind: type, write: Any) -> None:
    made = load(kind(write(GOOD, name)))
    assert made == Recipe("mine", (Pass(Entropy(), Fixed(layer=2, keep=5)),))


def test_a_file_may_lie_in_the_current_folder(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load("mine.yaml@small").passes[0].schedule == Fixed(layer=2, keep=3)


@pytest.mark.parametrize("path", ["no/such/file.yaml", "nothing.yaml", "some/folder"])
def test_missing_files_are_named(path: str, tmp_path: Path) -> None:
    assert problems(path) == [f"there is no file {path}: give a recipe name or the path of a YAML file"]
    assert problems(str(tmp_path))  # a folder


def test_yaml_text_in_place_of_a_name_is_a_tokenprune_error() -> None:
    with pytest.raises(TokenpruneError):
        load(GOOD)
    with pytest.raises(TokenpruneError):
        load(GOOD.replace("layer: 2", "layer: 2/32") + "#" * 5000)


def test_a_recipe_without_a_name_is_called_by_what_was_given(write: Any) -> None:
    path = write(GOOD.replace("name: mine\n", ""))
    assert load(path).name == str(path)
    assert load(a_recipe()).name == "recipe"


def test_an_error_names_the_recipe(write: Any) -> None:
    path = write(GOOD.replace("keep", "kep"))
    with pytest.raises(RecipeError, match="kep: unknown key; Fixed has layer, keep, average") as caught:
        load(path)
    assert caught.value.recipe == str(path)


# -- objects ---------------------------------------------------------------------------------------------------------


def test_a_recipe_object_is_itself_and_takes_no_overrides() -> None:
    made = load("fastv")
    assert load(made) is made
    assert "dataclasses.replace" in problems(made, "name=x")[0]
    assert load(replace(made, name="other")).passes == made.passes
    with pytest.raises(FrozenInstanceError):
        made.name = "x"  # type: ignore[misc]


def test_scorers_and_schedules_may_be_objects() -> None:
    scorer, schedule = Random(seed=3), Fixed(layer=1, keep=2)
    made = load({"name": "objects", "prune": [{"scorer": scorer, "schedule": schedule}, Pass(scorer, schedule)]})
    assert made == Recipe("objects", (Pass(scorer, schedule), Pass(scorer, schedule)))
    assert load(a_recipe(scorer=scorer)).passes[0] == Pass(scorer, Fixed(layer=2, keep=5))


class Plain(Scorer):
    """A scorer that is no dataclass."""

    def score(self, seen: Any) -> Any:
        return seen.hidden[:, 0]


@pytest.mark.parametrize("scorer", [Random(), Plain()])
def test_overrides_do_not_reach_into_objects(scorer: Scorer) -> None:
    assert load(a_recipe(scorer=scorer)).passes[0].scorer is scorer
    assert "overrides reach into settings" in problems(a_recipe(scorer=scorer), "prune.0.schedule.keep=1")[0]


def test_a_merger_is_given_by_name() -> None:
    made = load(a_recipe(merge="nearest"))
    assert made.passes[0].merge == Nearest()
    assert load(a_recipe(merge={"name": "nearest"})) == made
    assert registry().get("merger", "nearest") is Nearest
    assert load(a_recipe()).passes[0].merge is None
    assert load(a_recipe(merge=None)) == load(a_recipe())


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_positions_are_original_or_compact(positions: str) -> None:
    assert load(a_recipe(positions=positions)).passes[0].positions == positions


@dataclass(frozen=True)
class Typed(Scorer):
    """One field of every kind that a recipe can hold."""

    number: float = 1.0
    maybe: int | None = None
    flag: bool = False
    words: tuple[str, ...] = ()

    def score(self, seen: Any) -> Any:
        return seen.hidden[:, 0]


@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("number", 2, 2.0),
        ("maybe", None, None),
        ("maybe", 3, 3),
        ("flag", True, True),
        ("words", ["a", "b"], ("a", "b")),
        ("words", [], ()),
    ],
)
def test_fields_of_a_scorer_are_its_schema(field: str, given: Any, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenprune import hookimpl
    from tokenprune.builtin import plugin as builtin

    monkeypatch.setattr(builtin, "tokenprune_scorers", hookimpl(lambda: {"typed": Typed}))
    registry.cache_clear()
    try:
        for recipe, lines in (
            (a_recipe(scorer={"name": "typed", field: given}), ()),
            (a_recipe(scorer="typed"), (f"prune.0.scorer.{field}={json.dumps(given)}",)),
        ):
            found = getattr(load(recipe, *lines).passes[0].scorer, field)
            assert (found, type(found)) == (value, type(value))
        assert problems(a_recipe(scorer={"name": "typed", "flag": 1})) == ["prune.0.scorer.flag: expected bool, got 1"]
    finally:
        registry.cache_clear()
