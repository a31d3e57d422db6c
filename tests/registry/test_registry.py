"""Plugins as they are installed: real distributions in a folder, real entry points, real imports."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import FAMILIES, model

import tokenprune
from tokenprune import recipe
from tokenprune.builtin import plugin as builtin
from tokenprune.builtin.plugin import tokenprune_adapters
from tokenprune.builtin.scorers.entropy import Entropy
from tokenprune.cli import main
from tokenprune.contract.cases import parameters
from tokenprune.errors import RecipeError, RegistryError, UnknownNameError, UnsupportedModelError
from tokenprune.families.llava import LlavaAdapter
from tokenprune.registry import DISTRIBUTION, KINDS, registry

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from tokenprune import Adapter, Scheduler, Scorer, Seen, hookimpl
"""
KNORM = (
    HEAD
    + """
@dataclass(frozen=True)
class Knorm(Scorer):
    '''Keep the tokens with the shortest keys.'''
    order: float = 2.0
    def score(self, seen: Seen):
        return -seen.keys.norm(p=self.order, dim=-1).mean(0)

@hookimpl
def tokenprune_scorers():
    return {"knorm": Knorm}
"""
)
HALF_BROKEN = (
    HEAD
    + """
from dataclasses import dataclass
from tokenprune import Merger

@dataclass(frozen=True)
class Mine(Merger):
    def merge(self, hidden, kept, seen):
        return hidden

@hookimpl
def tokenprune_scorers():
    raise RuntimeError("no luck")

@hookimpl
def tokenprune_mergers():
    return {"still-there": Mine}
"""
)

Install = Callable[..., str]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No installed plugins, no cached registry before or after, no imported plugin left."""
    monkeypatch.delenv("TOKENPRUNE_PLUGINS", raising=False)
    monkeypatch.setattr("tokenprune.registry.plugins.entry_points", lambda *, group: [])
    before = set(sys.modules)
    registry.cache_clear()
    yield
    registry.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(distribution, code, entry_point)` writes a distribution; returns the name of its module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def found(*, group: str) -> list[Any]:
        points = [point for each in distributions(path=[str(site)]) for point in each.entry_points]
        return sorted((point for point in points if point.group == group), key=lambda point: point.name)

    monkeypatch.setattr("tokenprune.registry.plugins.entry_points", found)

    def write(distribution: str, code: str, point: str | None = None, target: str = "") -> str:
        module = "plug_" + distribution.replace("-", "_")
        (site / f"{module}.py").write_text(code)
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        value = f"{target or module}"
        (info / "entry_points.txt").write_text(f"[tokenprune]\n{point or distribution} = {value}\n[other]\nx = y\n")
        importlib.invalidate_caches()
        return module

    return write


def names(kind: str) -> set[str]:
    return set(registry().entries[kind])


def check_builtins_are_there() -> None:
    assert {"entropy", "attention", "diversity", "random"} <= names("scorer")
    assert {registry().adapter(model(family).config).model_types for family in FAMILIES} == {
        (family,) for family in FAMILIES
    }


# -- built-ins -------------------------------------------------------------------------------------------------------


def test_builtins_carry_our_own_distribution() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = registry()
    check_builtins_are_there()
    assert found.broken == ()
    assert set(found.entries) == set(KINDS)
    for kind, entries in found.entries.items():
        assert entries
        assert list(entries) == sorted(entries)
        for name, entry in entries.items():
            assert (entry.kind, entry.name, entry.distribution) == (kind, name, DISTRIBUTION)


def test_builtins_come_in_through_the_same_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "tokenprune_scorers", tokenprune.hookimpl(lambda: {"only": Entropy}))
    assert names("scorer") == {"only"}


def test_the_registry_is_loaded_once(install: Install) -> None:
    install("knorm", KNORM)
    assert registry() is registry()
    install("other", "raise RuntimeError")
    assert registry().broken == ()


# -- plugins that work -----------------------------------------------------------------------------------------------


def test_a_plugin_is_one_file_and_one_entry_point(install: Install) -> None:
    install("tokenprune-knorm", KNORM, "knorm")
    entry = registry().entries["scorer"]["knorm"]
    assert entry.distribution == "tokenprune-knorm"
    check_builtins_are_there()
    made = recipe.load({"prune": [{"scorer": "knorm", "schedule": {"name": "fixed", "layer": 1, "keep": 4}}]})
    assert made.passes[0].scorer == entry.part(order=2.0)
    with pytest.raises(tokenprune.TokenpruneError, match=r"prune\.0\.scorer\.order: expected float, got 'x'"):
        recipe.load(
            {
                "prune": [
                    {"scorer": {"name": "knorm", "order": "x"}, "schedule": {"name": "fixed", "layer": 1, "keep": 4}}
                ]
            }
        )


def test_a_plugin_may_be_an_object(install: Install) -> None:
    code = KNORM.replace("@hookimpl\ndef", "class Plugin:\n  @hookimpl\n  def").replace("rs():", "rs(self):")
    code = code.replace("    return {", "      return {") + "\nplugin = Plugin()\n"
    install("boxed", code, target="plug_boxed:plugin")
    assert registry().entries["scorer"]["knorm"].distribution == "boxed"


# -- plugins that do not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def (", "SyntaxError"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (HEAD + "@hookimpl\ndef tokenprune_scorers(config): return {}", "PluginValidationError"),
        (HEAD + "@hookimpl\ndef tokenprune_scorers(): raise RuntimeError('boom')", "RuntimeError: boom"),
        (HEAD + "@hookimpl\ndef tokenprune_scorers(): return None", "TypeError"),
        (HEAD + "@hookimpl\ndef tokenprune_scorers(): return 5", "TypeError"),
    ],
)
def test_a_broken_plugin_is_named_and_skipped(code: str, reason: str, install: Install) -> None:
    install("bad-plugin", code, "bad")
    install("tokenprune-knorm", KNORM, "knorm")
    with pytest.warns(UserWarning, match="bad-plugin.*" + reason.split(":")[0]):
        registry()
    assert [broken.distribution for broken in registry().broken] == ["bad-plugin"]
    assert reason in registry().broken[0].reason
    assert "knorm" in names("scorer")
    check_builtins_are_there()


@pytest.mark.parametrize("target", ["no_such_module", "plug_bad_plugin:nothing"])
def test_an_entry_point_to_nowhere_is_named_and_skipped(target: str, install: Install) -> None:
    install("bad-plugin", "", target=target)
    with pytest.warns(UserWarning, match="bad-plugin"):
        registry()
    assert [broken.distribution for broken in registry().broken] == ["bad-plugin"]
    check_builtins_are_there()


def test_a_plugin_with_one_good_and_one_unusable_hook_is_skipped_as_a_whole(install: Install) -> None:
    code = HEAD + "@hookimpl\ndef tokenprune_mergers(): return {'mine': max}\n"
    install("bad-plugin", code + "@hookimpl\ndef tokenprune_scorers(config): return {}\n")
    with pytest.warns(UserWarning, match="bad-plugin"):
        registry()
    assert "mine" not in names("merger")
    check_builtins_are_there()


def test_the_other_hooks_of_a_plugin_survive_one_that_raises(install: Install) -> None:
    install("half-broken", HALF_BROKEN)
    with pytest.warns(UserWarning, match="half-broken.*no luck"):
        registry()
    assert "still-there" in names("merger")
    assert registry().broken[0].reason == "RuntimeError: no luck"


@pytest.mark.parametrize(
    "thing", ["int", "5", "Scorer", "type('Plain', (Scorer,), {'score': lambda self, seen: None})"]
)
def test_a_thing_of_the_wrong_kind_is_named_and_skipped(thing: str, install: Install) -> None:
    """Found when it is registered, not in the middle of somebody's recipe."""
    install("bad-plugin", HEAD + f"@hookimpl\ndef tokenprune_scorers(): return {{'wrong': {thing}}}\n")
    with pytest.warns(UserWarning, match="bad-plugin.*wrong"):
        registry()
    assert "wrong" not in names("scorer")
    check_builtins_are_there()


def test_a_name_that_is_no_text_is_named_and_skipped(install: Install) -> None:
    install("bad-plugin", KNORM.replace('{"knorm"', "{5"))
    with pytest.warns(UserWarning, match="bad-plugin.*5"):
        registry()
    assert 5 not in names("scorer")
    check_builtins_are_there()


def test_model_types_given_as_one_word_are_not_taken_letter_by_letter(install: Install) -> None:
    code = HEAD + "from tokenprune import Adapter\n"
    code += "class Mine(Adapter):\n  model_types = 'xyz'\n"
    install("bad-plugin", code + "@hookimpl\ndef tokenprune_adapters(): return {'mine': Mine}\n")
    with pytest.warns(UserWarning, match="bad-plugin.*model_types"):
        registry()
    with pytest.raises(UnsupportedModelError):
        registry().adapter(SimpleNamespace(model_type="x"))


@pytest.mark.parametrize("field", ["published = 'mine-7b'", "published = ('mine-7b',)", "tiny = None"])
def test_forms_that_are_none_are_named(field: str, install: Install) -> None:
    """Found when they are registered, not by whoever lists published models or tests the adapter."""
    code = HEAD + f"from tokenprune import Adapter\nclass Mine(Adapter):\n  model_types = ('mine',)\n  {field}\n"
    install("bad-plugin", code + "@hookimpl\ndef tokenprune_adapters(): return {'mine': Mine}\n")
    with pytest.warns(UserWarning, match=f"bad-plugin.*adapter 'mine' names in {field.partition(' ')[0]} what is none"):
        registry()
    check_builtins_are_there()


def test_an_adapter_that_names_no_model_types_does_not_take_the_others_down(install: Install) -> None:
    code = HEAD + "from tokenprune import Adapter\nclass Mine(Adapter): pass\n"
    install("bad-plugin", code + "@hookimpl\ndef tokenprune_adapters(): return {'mine': Mine}\n")
    with pytest.warns(UserWarning, match="bad-plugin.*model_types"):
        registry()
    check_builtins_are_there()


# -- the same name twice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["first-knorm", "second-knorm"])
def test_what_two_plugins_want_is_an_error_for_those_who_ask(first: str, install: Install) -> None:
    """And nobody has it, whoever was installed first; everything else of both works."""
    second = {"first-knorm": "second-knorm", "second-knorm": "first-knorm"}[first]
    for each in (first, second):
        install(each, KNORM.replace('{"knorm": Knorm}', f'{{"knorm": Knorm, "{each}": Knorm}}'))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry()
    twice = "the scorer name 'knorm' is registered twice, by first-knorm and second-knorm: uninstall all but one"
    assert {"first-knorm", "second-knorm"} <= names("scorer")
    assert "knorm" not in names("scorer")
    check_builtins_are_there()
    with pytest.raises(RegistryError, match=twice):
        registry().get("scorer", "knorm")
    schedule = {"name": "fixed", "layer": 1, "keep": 4}
    with pytest.raises(RecipeError, match=rf"prune\.0\.scorer\.name: {twice}"):
        recipe.load({"prune": [{"scorer": "knorm", "schedule": schedule}]})
    recipe.load({"prune": [{"scorer": "first-knorm", "schedule": schedule}]})
    assert {one.distribution for one in registry().broken} == {"first-knorm", "second-knorm"}
    assert all(twice in str(one) for one in registry().broken)


def test_three_plugins_with_one_name_are_all_named(install: Install) -> None:
    for each in ("b", "c", "a"):
        install(each, KNORM)
    with pytest.raises(RegistryError, match="'knorm' is registered 3 times, by a, b and c"):
        registry().get("scorer", "knorm")


def test_a_plugin_cannot_replace_a_builtin(install: Install) -> None:
    """Nor break what is built in: its name is left out, with a sentence that names both."""
    install("impostor", KNORM.replace('"knorm"', '"entropy"'))
    with pytest.warns(UserWarning, match=f"leaves out the scorer name 'entropy' of impostor: .*{DISTRIBUTION}"):
        registry()
    assert registry().get("scorer", "entropy") is Entropy
    assert [(one.distribution, one.part) for one in registry().broken] == [("impostor", "scorer name 'entropy'")]
    assert recipe.load("entropyprune").passes[0].scorer == Entropy()


PARTS = """from dataclasses import dataclass
from tokenprune import Fact, Merger
@dataclass(frozen=True)
class Mine(Merger):
  def merge(self, hidden, kept, seen): return hidden
@dataclass(frozen=True)
class Told(Fact):
  about = "mine"
  def measure(self, model, adapter, samples): return 1
"""


def test_taken_names_of_recipes_mergers_and_calibrations_are_told_to_those_who_ask(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that do not name them run as ever, and `ls` says what is left out."""
    (tmp_path / "mine.yaml").write_text("prune: [{scorer: random, schedule: {name: fixed, layer: 1, keep: 4}}]")
    code = HEAD + "from pathlib import Path\n" + PARTS
    for kind, thing in (
        ("recipe", f"Path({str(tmp_path / 'mine.yaml')!r})"),
        ("merger", "Mine"),
        ("fact", "Told"),
    ):
        code += f"@hookimpl\ndef tokenprune_{kind}s(): return {{'mine': {thing}}}\n"
    for each in ("one", "two"):
        install(each, code + f"@hookimpl\ndef tokenprune_scorers(): raise RuntimeError('[{each}]')\n")
    with pytest.warns(UserWarning, match=r"RuntimeError: \[one\]"):
        registry()

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(list(arguments))
        return capsys.readouterr().err

    for asked in ("mine", "mine@192"):
        assert "the recipe name 'mine' is registered twice, by one and two" in said("show", asked)
    assert recipe.load(tmp_path / "mine.yaml").passes
    assert "the fact name 'mine' is registered twice" in said("calibrate", "pico", "--method", "mine")
    with pytest.raises(RecipeError, match=r"prune\.0\.merge: the merger name 'mine' is registered twice"):
        recipe.load("entropyprune", "prune.0.merge=mine")
    with pytest.raises(RegistryError, match="the merger name 'mine' is registered twice"):
        parameters("merger", ["mine"])
    assert said("explain", "entropyprune@192") == ""
    listed = " ".join(said("ls", "--json").split())
    assert "skipped the recipe name 'mine' of one: the recipe name 'mine' is registered twice, by one and two" in listed
    assert "skipped the broken plugin two: RuntimeError: [two]" in listed  # brackets are no markup


def test_a_plugin_cannot_claim_what_is_built_in(install: Install) -> None:
    install("thief", "", target="tokenprune.builtin.plugin")
    with pytest.warns(UserWarning, match="skips the broken plugin thief: ValueError: Plugin already registered"):
        registry()
    assert {entry.distribution for entry in registry().entries["scorer"].values()} == {DISTRIBUTION}
    check_builtins_are_there()


def test_one_name_may_stand_for_things_of_different_kinds(install: Install) -> None:
    install("nearest-scorer", KNORM.replace('"knorm"', '"nearest"'))
    assert "nearest" in names("scorer")
    assert "nearest" in names("merger")


ADAPTER = """
from tokenprune.families.llava import LlavaAdapter
class Mine(LlavaAdapter):
  model_types = ("llava", "mine")
@hookimpl
def tokenprune_adapters(): return {"NAME": Mine}
"""


def test_a_builtin_family_keeps_its_adapter(install: Install) -> None:
    """Whatever the alphabet says; what else the other one knows, it answers for."""
    install("rival", HEAD + ADAPTER.replace("NAME", "a-llava"))
    with pytest.warns(UserWarning, match=f"leaves out the model type 'llava' of rival: .*{DISTRIBUTION}"):
        registry()
    assert type(registry().adapter(SimpleNamespace(model_type="llava"))) is LlavaAdapter
    assert type(registry().adapter(SimpleNamespace(model_type="mine"))).__name__ == "Mine"


@pytest.mark.parametrize("name", ["same", "other"])
def test_two_adapters_for_one_family_are_an_error_that_names_both(name: str, install: Install) -> None:
    """For those who have such a model; otherwise the alphabet would decide which of them prunes."""
    code = HEAD + ADAPTER.replace('"llava", "mine"', '"mine",')
    install("rival", code.replace("NAME", name))
    install("rival-2", code.replace("NAME", "same"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_builtins_are_there()
    with pytest.raises(RegistryError, match=r"the (model type 'mine'|adapter name 'same') is .* by rival and rival-2"):
        registry().adapter(SimpleNamespace(model_type="mine"))
    assert {one.distribution for one in registry().broken} == {"rival", "rival-2"}


# -- the allow-list --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "loaded"),
    [
        (None, {"knorm", "vnorm"}),
        ("", set()),
        (",", set()),
        ("knorm", {"knorm"}),
        ("tokenprune-knorm", {"knorm"}),
        (" knorm , vnorm ", {"knorm", "vnorm"}),
        ("nobody", set()),
    ],
)
def test_the_allow_list_says_which_plugins_are_imported(
    allowed: str | None, loaded: set[str], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By entry-point or distribution name; what it leaves out is never imported. Built-ins always stay."""
    modules = {name: install(f"tokenprune-{name}", KNORM.replace("knorm", name), name) for name in ("knorm", "vnorm")}
    if allowed is not None:
        monkeypatch.setenv("TOKENPRUNE_PLUGINS", allowed)
    assert names("scorer") & {"knorm", "vnorm"} == loaded
    assert {name for name, module in modules.items() if module in sys.modules} == loaded
    check_builtins_are_there()


def test_a_duplicate_can_be_left_out_by_the_allow_list(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("first-knorm", KNORM)
    install("second-knorm", KNORM)
    monkeypatch.setenv("TOKENPRUNE_PLUGINS", "second-knorm")
    assert registry().entries["scorer"]["knorm"].distribution == "second-knorm"


# -- unknown names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [("scorer", "entropie", "entropy"), ("scheduler", "piramid", "pyramid"), ("merger", "neerest", "nearest")],
)
def test_unknown_names_say_what_was_meant(kind: str, wrong: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no {kind} '{wrong}': did you mean '{meant}'.*known: .*{meant}"):
        registry().get(kind, wrong)


def test_names_like_nothing_known_get_the_list_alone() -> None:
    with pytest.raises(UnknownNameError, match="no scorer 'zzzz': known: attention, diversity, entropy, random"):
        registry().get("scorer", "zzzz")


@pytest.mark.parametrize("config", [SimpleNamespace(model_type="bert"), SimpleNamespace(), None])
def test_unsupported_models_get_the_list_of_supported_ones(config: Any) -> None:
    types = sorted(name for adapter in tokenprune_adapters().values() for name in adapter.model_types)
    with pytest.raises(UnsupportedModelError, match=f"supported are {', '.join(types)}"):
        registry().adapter(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_found_by_model_type(family: str) -> None:
    assert isinstance(
        registry().adapter(SimpleNamespace(model_type=family)), type(registry().adapter(model(family).config))
    )
    assert family in registry().adapter(model(family).config).model_types


def test_a_plugin_brings_a_new_family(install: Install) -> None:
    code = (
        HEAD
        + "from tokenprune.families.llava import LlavaAdapter\nclass Mine(LlavaAdapter):\n  model_types = ('mine',)\n"
    )
    install("mine", code + "@hookimpl\ndef tokenprune_adapters(): return {'mine': Mine}\n")
    found = registry().adapter(SimpleNamespace(model_type="mine"))
    assert isinstance(found, LlavaAdapter)
    assert type(found).__name__ == "Mine"
