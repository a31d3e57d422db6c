"""From names to what the contract tests: parts with settings, and the families to test them in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from ..builtin.schedules import Fixed
from ..builtin.scorers.random import Random
from ..errors import RecipeError, TokenpruneError
from ..parts.adapter import Adapter
from ..parts.merger import Merger
from ..parts.scheduler import Scheduler
from ..parts.scorer import Scorer, VisionScorer
from ..recipe import Pass, Step, VisionPass, load, presets, registered
from ..registry import registry
from .families import Family, adapter_of, family_of, named, shipped

Part = str | Mapping[str, Any]
"""A registered name, or its settings as in a recipe; as text, in YAML."""


@dataclass(frozen=True)
class Merging:
    """A merger and the scorer that it goes with."""

    name: str
    merger: Merger
    scorer: Scorer


def parameters(
    kind: str, parts: Sequence[Part], families: Sequence[str | Family] = (), alone: bool = False
) -> dict[str, tuple[Any, Any]]:
    """What the tests of a kind get: a part and a family, by a label. `alone`: without families (schedules: always).

    Raises UnknownNameError, RecipeError, and TokenpruneError for a family that cannot be had.
    """
    given = [named(family) for family in families]
    if kind == "adapter":
        return dict(pair for part in parts for pair in _adapters(str(_read(kind, part)["name"]), given))
    build: dict[str, Callable[[dict[str, Any]], Mapping[str, Any]]]
    build = {"scorer": _scorers, "vision_scorer": _vision_scorers, "scheduler": _schedulers, "merger": _mergings}
    made: dict[str, Any] = {}
    for part in parts:
        made |= build[kind](_read(kind.removeprefix("vision_"), part))
    if alone or kind == "scheduler":
        return {name: (part, None) for name, part in made.items()}
    return {f"{name}-{one.name}": (part, one) for name, part in made.items() for one in (*shipped(), *given)}


def _read(kind: str, part: Part) -> dict[str, Any]:
    """A part as settings with a name."""
    if isinstance(part, str):
        try:
            given = yaml.safe_load(part)
        except yaml.YAMLError:
            given = part
    else:
        given = dict(part)
    settings = given if isinstance(given, dict) else {"name": str(part)}
    registry().get(kind, str(settings.get("name")))  # raises
    return settings


def _scorers(settings: dict[str, Any]) -> dict[str, Scorer]:
    if not issubclass(registry().get("scorer", settings["name"]), Scorer):
        raise TokenpruneError(
            f"{settings['name']} ranks pictures inside the vision tower: test it with --tokenprune-vision-scorer"
        )
    return _built("scorer", settings, lambda given: _one({"scorer": given, "schedule": Fixed(layer=0, keep=1)}))


def _vision_scorers(settings: dict[str, Any]) -> dict[str, VisionScorer]:
    if not issubclass(registry().get("scorer", settings["name"]), VisionScorer):
        raise TokenpruneError(f"{settings['name']} ranks tokens in the decoder: test it with --tokenprune-scorer")
    step = {"tower": "vision", "schedule": Fixed(layer=0, keep=1)}
    return _built("scorer", settings, lambda given: _one({**step, "scorer": given}), tower=True)


def _schedulers(settings: dict[str, Any]) -> dict[str, Scheduler]:
    return _built("schedule", settings, lambda given: _one({"scorer": Random(), "schedule": given}))


def _one(step: dict[str, Any]) -> Step:
    return load({"name": "the contract", "prune": [step]}).passes[0]


def _built(
    key: str, settings: dict[str, Any], make: Callable[[dict[str, Any]], Step], tower: bool = False
) -> dict[str, Any]:
    """The part that these settings make. A name alone: with its defaults, and as the registered recipes use it."""
    name = settings["name"]
    made: list[Any] = []
    fault: RecipeError | None = None
    try:
        made.append(getattr(make(settings), key))
    except RecipeError as error:
        fault = error
    if len(settings) == 1:
        kind = registry().get("scheduler" if key == "schedule" else key, name)
        steps = [step for step in _passes() if key == "schedule" or isinstance(step, VisionPass) == tower]
        used = [getattr(step, key) for step in steps if type(getattr(step, key)) is kind]
        made += [part for i, part in enumerate(used) if part not in made and part not in used[:i]]
    if not made:
        raise fault or RecipeError(name, ["no settings"])
    return {_label(name, part): part for part in made}


def _label(name: str, part: Any) -> str:
    """The name, and in brackets what differs from the defaults."""
    differ = [
        f"{field.name}={getattr(part, field.name)}"
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != field.default
    ]
    return f"{name}({','.join(differ)})" if differ else name


def _mergings(settings: dict[str, Any]) -> dict[str, Merging]:
    """With the scorers that the registered recipes pair it with; without any, random tokens."""
    name = settings["name"]
    merger = registry().get("merger", name)
    step = _one({"scorer": Random(), "schedule": Fixed(layer=0, keep=1), "merge": settings})
    assert isinstance(step, Pass)
    assert step.merge is not None
    made = step.merge
    scorers = {
        _name("scorer", step.scorer): step.scorer
        for step in _passes()
        if isinstance(step, Pass) and type(step.merge) is merger
    }
    return {
        f"{name}-{label}": Merging(name, made, scorer) for label, scorer in (scorers or {"random": Random()}).items()
    }


def _name(kind: str, part: Any) -> str:
    names = [name for name, entry in registry().entries[kind].items() if entry.part is type(part)]
    return names[0] if names else type(part).__name__


@cache
def _passes() -> tuple[Step, ...]:
    """Every pass of every registered recipe and preset that can be read."""
    found: list[Step] = []
    for name in registered():
        with suppress(TokenpruneError):  # somebody else's
            for full in (name, *(f"{name}@{preset}" for preset in presets(name))):
                found += load(full).passes
    return tuple(found)


def _adapters(name: str, given: Sequence[Family]) -> Iterator[tuple[str, tuple[Adapter, Family]]]:
    """An adapter with the tiny models that it brings, and those that are given and its own."""
    adapter = registry().get("adapter", name)
    brought = [family_of(tiny) for tiny in vars(adapter).get("tiny", ())]
    mine = [one for one in (*brought, *given) if adapter is adapter_of(one)]
    if not mine:
        raise TokenpruneError(
            f"there is no tiny model for the adapter {name!r}: give its class an attribute `tiny`, or write a "
            "tokenprune.contract.families.Family whose config has one of its model types, and name it in `families` of "
            "the test's class, or give --tokenprune-family MODULE:NAME"
        )
    yield from ((f"{name}-{one.name}", (adapter(), one)) for one in mine)


def layer_of(scorer: Scorer, merger: Merger | None = None) -> int:
    """Where the contract prunes: at layer 0 if tower states are read, else after two blocks."""
    return 0 if scorer.reads_blocks or (merger is not None and merger.reads_blocks) else 2
