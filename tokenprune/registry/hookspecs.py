"""What a plugin may register. A plugin is a module (or object) with any of these hooks, named in the entry-point
group `tokenprune` of its distribution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:  # the command line's help names the kinds, without torch
    from ..parts.adapter import Adapter
    from ..parts.fact import Fact
    from ..parts.merger import Merger
    from ..parts.scheduler import Scheduler
    from ..parts.scorer import Scorer, VisionScorer

KINDS = ("scorer", "scheduler", "adapter", "merger", "fact", "recipe")
"""What there is a hook for, each named after the plural."""

hookspec = pluggy.HookspecMarker("tokenprune")
hookimpl = pluggy.HookimplMarker("tokenprune")


@hookspec
def tokenprune_scorers() -> dict[str, type[Scorer] | type[VisionScorer]]:
    """Scorers, for the decoder or the vision tower, by the name used in recipes."""
    raise NotImplementedError


@hookspec
def tokenprune_schedulers() -> dict[str, type[Scheduler]]:
    """Schedules by the name used in recipes."""
    raise NotImplementedError


@hookspec
def tokenprune_adapters() -> dict[str, type[Adapter]]:
    """Adapters by the name of their family."""
    raise NotImplementedError


@hookspec
def tokenprune_mergers() -> dict[str, type[Merger]]:
    """Mergers by the name used in recipes."""
    raise NotImplementedError


@hookspec
def tokenprune_facts() -> dict[str, type[Fact]]:
    """What is measured on models, by the name that schedules need it by: it is looked up, or measured and remembered.
    `tokenprune calibrate --method NAME` measures it too, and prints the recipe that is fitted with it, if any."""
    raise NotImplementedError


@hookspec
def tokenprune_recipes() -> dict[str, Path]:
    """Recipe files by name."""
    raise NotImplementedError
