"""Names to things, through pluggy: the only place that does it. Built-ins and plugins take the same way in."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from . import hookspecs
from .errors import RegistryError, UnknownNameError, UnsupportedModelError
from .hookspecs import KINDS
from .interfaces import Adapter, Scheduler, Scorer, TowerScorer

DISTRIBUTION = "tokenprune-mllm"
GROUP = "tokenprune"


@dataclass(frozen=True)
class Entry:
    """One registered thing."""

    kind: str
    name: str
    thing: Any
    distribution: str


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why."""

    distribution: str
    reason: str


@dataclass(frozen=True)
class Registry:
    """Everything registered, by kind and name, and the plugins that failed to load."""

    entries: dict[str, dict[str, Entry]]
    broken: tuple[Broken, ...]

    def get(self, kind: str, name: str) -> Any:
        """The registered thing. Raises UnknownNameError with the closest name."""
        known = self.entries[kind]
        if name not in known:
            raise UnknownNameError(kind, name, known)
        return known[name].thing

    def origin(self, kind: str, thing: Any) -> str:
        """A thing in words, for errors: its name and the distribution that brings it."""
        for entry in self.entries[kind].values():
            if entry.thing is thing:
                return f"{kind} {entry.name!r} of {entry.distribution}"
        return f"{kind} {thing.__name__!r} of module {thing.__module__}"

    def adapter(self, config: Any) -> Adapter:
        """The adapter for `config.model_type`. Raises UnsupportedModelError."""
        by_type = {t: entry.thing for entry in self.entries["adapter"].values() for t in entry.thing.model_types}
        model_type = getattr(config, "model_type", None)
        if model_type not in by_type:
            raise UnsupportedModelError(
                f"no adapter for model type {model_type!r}: supported are {', '.join(sorted(by_type))}. "
                "docs/add-a-family.md shows how to add one."
            )
        adapter: Adapter = by_type[model_type]()
        return adapter


@cache
def registry() -> Registry:
    """Load every plugin once. A broken one is reported with its distribution and skipped, never fatal.

    `TOKENPRUNE_PLUGINS`, if set, is a comma-separated allow-list of entry-point or distribution names (empty: none).

    Raises:
        RegistryError: two plugins register the same name.
    """
    from . import builtin

    manager = pluggy.PluginManager("tokenprune")
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name=DISTRIBUTION)
    origin: dict[int, str] = {id(builtin): DISTRIBUTION}
    broken: list[Broken] = []
    for point in _allowed(entry_points(group=GROUP)):
        distribution = point.dist.name if point.dist else point.value
        try:
            plugin = point.load()
            origin[id(plugin)] = distribution
            manager.register(plugin, name=f"{distribution}:{point.name}")
            manager.check_pending()  # a hook whose name is misspelt
        except (Exception, SystemExit) as error:  # whatever a stranger's import can raise
            manager.unregister(name=f"{distribution}:{point.name}")
            broken.append(_report(distribution, error))
    entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for implementation in getattr(manager.hook, f"tokenprune_{kind}s").get_hookimpls():
            distribution = origin[id(implementation.plugin)]
            try:
                things = dict(implementation.function())
            except (Exception, SystemExit) as error:
                broken.append(_report(distribution, error))
                continue
            for name, thing in things.items():
                if reason := _unfit(kind, name, thing):
                    broken.append(_report(distribution, TypeError(f"{kind} {name!r} {reason}")))
                    continue
                if (other := entries[kind].get(name)) is not None:
                    raise RegistryError(
                        f"the {kind} name {name!r} is registered twice, by {other.distribution} and {distribution}: "
                        "uninstall one of them or leave it out of TOKENPRUNE_PLUGINS"
                    )
                entries[kind][name] = Entry(kind, name, thing, distribution)
    _one_adapter_each(entries["adapter"].values())
    return Registry({kind: dict(sorted(found.items())) for kind, found in entries.items()}, tuple(broken))


def _unfit(kind: str, name: Any, thing: Any) -> str | None:
    """Why something registered cannot be one of its kind, or None."""
    if not isinstance(name, str):
        return "needs a string for a name"
    if kind == "recipe":
        return None if isinstance(thing, Path) and thing.is_file() else f"must be the path of a file, got {thing!r}"
    if kind in ("merger", "calibration"):
        return None if callable(thing) else f"must be a function, got {thing!r}"
    bases = {"scorer": (Scorer, TowerScorer), "scheduler": (Scheduler,), "adapter": (Adapter,)}[kind]
    if not (isinstance(thing, type) and issubclass(thing, bases)):
        return f"must be a subclass of {' or '.join(base.__name__ for base in bases)}, got {thing!r}"
    if missing := sorted(getattr(thing, "__abstractmethods__", ())):
        return f"does not implement {', '.join(missing)}"
    if kind == "adapter":
        types = getattr(thing, "model_types", None)
        return None if isinstance(types, tuple) and types else f"names no model_types: expected a tuple, got {types!r}"
    return None if dataclasses.is_dataclass(thing) else "must be a dataclass: its fields are its settings"


def _one_adapter_each(entries: Iterable[Entry]) -> None:
    found: dict[str, Entry] = {}
    for entry in entries:
        for model_type in entry.thing.model_types:
            if (other := found.setdefault(model_type, entry)) is not entry:
                raise RegistryError(
                    f"model type {model_type!r} has two adapters, {other.name} of {other.distribution} and "
                    f"{entry.name} of {entry.distribution}: leave one of them out of TOKENPRUNE_PLUGINS"
                )


def _allowed(points: Any) -> list[EntryPoint]:
    chosen = os.environ.get("TOKENPRUNE_PLUGINS")
    if chosen is None:
        return list(points)
    names = {name.strip() for name in chosen.split(",")}
    return [point for point in points if point.name in names or (point.dist and point.dist.name in names)]


def _report(distribution: str, error: BaseException) -> Broken:
    problem = Broken(distribution, f"{type(error).__name__}: {error}")
    warnings.warn(f"tokenprune skips the broken plugin {distribution}: {problem.reason}", stacklevel=3)
    return problem
