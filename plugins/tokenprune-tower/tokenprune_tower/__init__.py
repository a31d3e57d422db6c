"""Methods that merge tokens inside the vision tower; one file per paper."""

from __future__ import annotations

from pathlib import Path

from tokenprune import VisionScorer, hookimpl

from .evoprune import EvoPrune
from .folder import Folder
from .tome import ToMe


@hookimpl
def tokenprune_scorers() -> dict[str, type[VisionScorer]]:
    return {"evoprune": EvoPrune, "folder": Folder, "tome": ToMe}


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
