"""Rows of a sweep as tables and plots, and as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import plots
from ..results import UNPRUNED, Results, markdown
from .combining import Combination
from .rows import Row


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines as texts; an impossible combination says why in its last column."""
    kinds = list(next((row["accuracy"] for row in rows if "accuracy" in row), {}))
    impossible = any("impossible" in row for row in rows)
    header = ["combination", "layers", "tokens", "FLOPs", *kinds, *(["impossible"] if impossible else [])]
    lines = []
    for row in rows:
        if "impossible" in row:
            lines.append([row["name"], "", "", "", *[""] * len(kinds), row["impossible"]])
        else:
            layers = " ".join(map(str, row["layers"]))
            cost = [layers, f"{row['average']:.1f}", f"{row['flops_share']:.1%}"]
            right = [f"{row['accuracy'][kind]:.1%}" for kind in kinds]
            lines.append([row["name"], *cost, *right, *([""] if impossible else [])])
    return header, lines


def as_csv(rows: Sequence[Row]) -> str:
    """One column per setting and per kind of question."""
    settings = [dict(line.split("=", 1) for line in row["settings"]) for row in rows]
    keys = dict.fromkeys(key for each in settings for key in each)
    kinds = list(next((row["accuracy"] for row in rows if "accuracy" in row), {}))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["recipe", *keys, "budget", "layers", "average", "flops_share", *kinds, "impossible"])
    for row, given in zip(rows, settings, strict=True):
        right = [row.get("accuracy", {}).get(kind, "") for kind in kinds]
        cost = [" ".join(map(str, row.get("layers", []))), row.get("average", ""), row.get("flops_share", "")]
        values = [given.get(key, "") for key in keys]
        writer.writerow(
            [row["recipe"] or UNPRUNED, *values, row["budget"] or "", *cost, *right, row.get("impossible", "")]
        )
    return out.getvalue()


def save(rows: Sequence[Row], folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """JSON, CSV, Markdown and, where there is matplotlib, the two plots; returns what was written."""
    return Results(folder, "sweep", settings).save(
        {"rows": list(rows)},
        texts={"sweep.csv": as_csv(rows), "sweep.md": markdown(*table(rows))},
        figures=plot(rows, f"{settings['model']}: {settings['limit']} questions of each kind"),
    )


def plot(rows: Sequence[Row], title: str) -> dict[str, Callable[[], bytes]]:
    """What draws accuracy over the first layer that drops tokens (Fig. 5 of arXiv 2602.17196) and over the FLOPs left.

    By the names of the files.
    """
    done = [row for row in rows if "accuracy" in row]
    level = next(((UNPRUNED, _accuracy(row)) for row in done if row["recipe"] is None), None)
    found: dict[str, Callable[[], bytes]] = {}
    for name, label, x, without in (
        ("accuracy-layer", "first layer that drops visual tokens", _first_layer, ("layer", "layers")),
        ("accuracy-flops", "decoder prefill FLOPs left (%)", _flops, ("keep", "average", "ratio", "budget")),
    ):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in done:
            if row["layers"]:
                one = Combination(row["recipe"], tuple(row["settings"]), row["budget"])
                points.setdefault(one.spell(*without), []).append((x(row), _accuracy(row)))
        if points:
            joined = {key: sorted(line) for key, line in points.items()}
            found[f"{name}.png"] = partial(plots.lines, joined, (label, "exact answers (%)"), title, level)
    return found


def _accuracy(row: Row) -> float:
    return 100 * float(row["accuracy"]["all"])


def _first_layer(row: Row) -> float:
    return float(row["layers"][0])


def _flops(row: Row) -> float:
    return 100 * float(row["flops_share"])
