"""Names to things, through pluggy: the only place that does it. Built-ins and plugins take the same way in."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from . import hookspecs
from .entries import DISTRIBUTION, GROUP, Broken, Entry, Registry, contest
from .hookspecs import KINDS

BUILT_IN = "tokenprune.builtin.plugin"
"""Named, not imported: a plugin like the others."""


@cache
def registry() -> Registry:
    """Load every plugin once. A broken one is reported with its distribution and skipped, never fatal.

    `TOKENPRUNE_PLUGINS`, if set, is a comma-separated allow-list of entry-point or distribution names (empty: none).
    Names that are taken are no reason to fail either: see `Registry`.
    """
    broken: list[Broken] = []
    offered = _offered(*_loaded(broken), broken)
    entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
    contested: dict[str, dict[str, tuple[Entry, ...]]] = {kind: {} for kind in KINDS}
    for kind, names in offered.items():
        for name, rivals in sorted(names.items()):
            won, lost = _settle(f"{kind} name {name!r}", rivals)
            broken += lost
            if won is None:
                contested[kind][name] = tuple(rivals)
            else:
                entries[kind][name] = won
    types: dict[str, list[Entry]] = {}
    for entry in entries["adapter"].values():
        for model_type in dict.fromkeys(entry.part.model_types):
            types.setdefault(model_type, []).append(entry)
    for model_type, rivals in sorted(types.items()):
        broken += _settle(f"model type {model_type!r}", rivals)[1]
    return Registry(entries, tuple(broken), contested)


def _loaded(broken: list[Broken]) -> tuple[pluggy.PluginManager, dict[int, str]]:
    """Every plugin that can be imported, and the distribution of each by its identity; others join the `broken`."""
    builtin = import_module(BUILT_IN)
    manager = pluggy.PluginManager("tokenprune")
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name=DISTRIBUTION)
    origin = {id(builtin): DISTRIBUTION}
    for point in _allowed(entry_points(group=GROUP)):
        distribution = point.dist.name if point.dist else point.value
        try:
            plugin = point.load()
            manager.register(plugin, name=f"{distribution}:{point.name}")
            origin[id(plugin)] = distribution  # not before: one that is registered already stays whose it is
            manager.check_pending()  # a hook whose name is misspelt
        except (Exception, SystemExit) as error:  # whatever a stranger's import can raise
            manager.unregister(name=f"{distribution}:{point.name}")
            broken.append(_report(distribution, error))
    return manager, origin


def _offered(
    manager: pluggy.PluginManager, origin: dict[int, str], broken: list[Broken]
) -> dict[str, dict[str, list[Entry]]]:
    """What the plugins' hooks give, by kind and name, several to a name; what is unfit joins the `broken`."""
    found: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for implementation in getattr(manager.hook, f"tokenprune_{kind}s").get_hookimpls():
            distribution = origin[id(implementation.plugin)]
            try:
                parts = dict(implementation.function())
            except (Exception, SystemExit) as error:
                broken.append(_report(distribution, error))
                continue
            for name, part in parts.items():
                if reason := _unfit(kind, name, part):
                    broken.append(_report(distribution, TypeError(f"{kind} {name!r} {reason}")))
                    continue
                found[kind].setdefault(name, []).append(Entry(kind, name, part, distribution))
    return found


def spell_part(kind: str, part: Any, where: str) -> str:
    """A part in words, for errors: what it is, who brings it, and where it was called."""
    return f"{registry().origin(kind, part)} {where}"


def _settle(what: str, rivals: Sequence[Entry]) -> tuple[Entry | None, list[Broken]]:
    """Who of those that want one name has it, None for nobody; and what is left out.

    A built-in one wins, which is said at once, since whoever asks for the name gets it without an error. Of plugins
    none wins: whoever asks is told then.
    """
    if len(rivals) == 1:
        return rivals[0], []
    ours = [entry for entry in rivals if entry.distribution == DISTRIBUTION]
    if not ours:
        reason = contest(what, rivals)
        return None, [Broken(entry.distribution, reason, what) for entry in rivals]
    reason = f"it is built in ({DISTRIBUTION}), and no plugin replaces that; another one is needed"
    lost = [Broken(entry.distribution, reason, what) for entry in rivals if entry is not ours[0]]
    for one in lost:
        warnings.warn(f"tokenprune leaves out {one}", stacklevel=4)
    return ours[0], lost


def _unfit(kind: str, name: Any, part: Any) -> str | None:
    """Why something registered cannot be one of its kind, or None."""
    if not isinstance(name, str):
        return "needs a string for a name"
    if kind == "recipe":
        return None if isinstance(part, Path) and part.is_file() else f"must be the path of a file, got {part!r}"
    from ..parts.adapter import Adapter  # here, for the command line's help, which needs no torch
    from ..parts.fact import Fact
    from ..parts.merger import Merger
    from ..parts.scheduler import Scheduler
    from ..parts.scorer import Scorer, VisionScorer

    bases: dict[str, tuple[type, ...]] = {"scorer": (Scorer, VisionScorer), "scheduler": (Scheduler,)}
    bases |= {"adapter": (Adapter,), "merger": (Merger,), "fact": (Fact,)}
    if not (isinstance(part, type) and issubclass(part, bases[kind])):
        return f"must be a subclass of {' or '.join(base.__name__ for base in bases[kind])}, got {part!r}"
    if missing := sorted(getattr(part, "__abstractmethods__", ())):
        return f"does not implement {', '.join(missing)}"
    if kind == "adapter":
        return _unfit_adapter(part)
    return None if dataclasses.is_dataclass(part) else "must be a dataclass: its fields are its settings"


def _unfit_adapter(adapter: Any) -> str | None:
    from ..parts.published import Published
    from ..parts.tiny import Tiny

    types = getattr(adapter, "model_types", None)
    if not (isinstance(types, tuple) and types):
        return f"names no model_types: expected a tuple, got {types!r}"
    for field, kind in (("published", Published), ("tiny", Tiny)):
        forms = getattr(adapter, field)
        if not (isinstance(forms, tuple) and all(isinstance(form, kind) for form in forms)):
            return f"names in {field} what is none: expected a tuple of {kind.__name__}, got {forms!r}"
    return None


def _allowed(points: Any) -> list[EntryPoint]:
    chosen = os.environ.get("TOKENPRUNE_PLUGINS")
    if chosen is None:
        return list(points)
    names = {name.strip() for name in chosen.split(",")}
    return [point for point in points if point.name in names or (point.dist and point.dist.name in names)]


def _report(distribution: str, error: BaseException) -> Broken:
    problem = Broken(distribution, f"{type(error).__name__}: {error}")
    warnings.warn(f"tokenprune skips {problem}", stacklevel=4)
    return problem
