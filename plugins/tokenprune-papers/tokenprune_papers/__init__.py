"""Published methods: each is a file here, with one line in a hook below, and a recipe."""

from __future__ import annotations

from pathlib import Path

from tokenprune import Calibration, Merger, Scorer, hookimpl

from . import dart, fitprune, sparsevlm, vtw


@hookimpl
def tokenprune_scorers() -> dict[str, type[Scorer]]:
    return {
        "dart": dart.Dart,
        "fitprune": fitprune.FitPrune,
        "sparsevlm": sparsevlm.SparseVLM,
    }


@hookimpl
def tokenprune_mergers() -> dict[str, Merger]:
    return {
        "recycle": sparsevlm.recycle,
    }


@hookimpl
def tokenprune_calibrations() -> dict[str, Calibration]:
    return {
        "fitprune": fitprune.calibrate,
        "vtw": vtw.calibrate,
    }


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
