"""Published methods: each is a file here, with one line in a hook below, and a recipe."""

from __future__ import annotations

from pathlib import Path

from tokenprune import Fact, Merger, Scorer, hookimpl

from . import dart, fitprune, sparsevlm, vtw
from .cdpruner import CDPruner
from .hiprune import HiPrune
from .holov import HoloV
from .mergers import Contextual, Neighbours
from .prumerge import PruMerge
from .visionzip import VisionZip
from .vispruner import VisPruner
from .vscan import VScan


@hookimpl
def tokenprune_scorers() -> dict[str, type[Scorer]]:
    return {
        "cdpruner": CDPruner,
        "dart": dart.Dart,
        "fitprune": fitprune.FitPrune,
        "hiprune": HiPrune,
        "holov": HoloV,
        "prumerge": PruMerge,
        "sparsevlm": sparsevlm.SparseVLM,
        "visionzip": VisionZip,
        "vispruner": VisPruner,
        "vscan": VScan,
    }


@hookimpl
def tokenprune_mergers() -> dict[str, type[Merger]]:
    return {"contextual": Contextual, "neighbours": Neighbours, "recycle": sparsevlm.Recycle}


@hookimpl
def tokenprune_facts() -> dict[str, type[Fact]]:
    return {"fitprune": fitprune.Fit, "vtw": vtw.Withdrawal}


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
