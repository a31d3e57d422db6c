"""What a plugin may register. A plugin is a module (or object) with any of these hooks, named in the entry-point
group `tokenprune` of its distribution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:  # the command line's help names the kinds, without torch
    from ..parts.adapter import Adapter
    from ..parts.merger import Merger
    from ..parts.scheduler import Calibration, Scheduler
    from ..parts.scorer import Scorer, VisionScorer

KINDS = ("scorer", "scheduler", "adapter", "merger", "calibration", "recipe")
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
def tokenprune_mergers() -> dict[str, Merger]:
    """Mergers by the name used in recipes."""
    raise NotImplementedError


@hookspec
def tokenprune_calibrations() -> dict[str, Calibration]:
    """Functions that measure a recipe on a model, by the name of their method."""
    raise NotImplementedError


@hookspec
def tokenprune_recipes() -> dict[str, Path]:
    """Recipe files by name."""
    raise NotImplementedError
