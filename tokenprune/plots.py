"""Plots of what `bench` and `sweep` measured. Needs matplotlib, which is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import TokenpruneError

DPI = 150
Points = Mapping[str, Sequence[tuple[float, float]]]
"""Lines by name; points (x, y) in the order they are joined."""


def figure(columns: int = 1, width: float = 6.4, height: float = 4.2) -> tuple[Any, list[Any]]:
    """A figure without a window, and its axes side by side. Raises TokenpruneError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TokenpruneError(
            "plots need matplotlib: pip install 'tokenprune-mllm[viz]', or leave them out with --no-plots"
        ) from error
    made = Figure(figsize=(width * columns, height), dpi=DPI, layout="constrained")
    return made, list(made.subplots(1, columns, squeeze=False)[0])


def save(made: Any, path: Path) -> None:
    """As PNG, without the date, so that the same numbers give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, format="png", metadata={"Software": None})


def lines(path: Path, points: Points, x: str, y: str, title: str, level: tuple[str, float] | None = None) -> None:
    """Marked lines, and a dashed level to compare with."""
    made, (axes,) = figure(width=7.4)
    markers = "osD^vP*X"
    for i, (name, line) in enumerate(points.items()):
        axes.plot(*zip(*line, strict=True), marker=markers[i % len(markers)], color=f"C{i % 10}", label=name, alpha=0.9)
    if level is not None:
        axes.axhline(level[1], color="0.4", linestyle="--", linewidth=1, label=level[0])
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    made.legend(loc="outside lower center", ncols=2 if len(points) > 2 else 3, fontsize="small", frameon=False)
    save(made, path)


def bars(path: Path, names: Sequence[str], stacked: Mapping[str, Sequence[float]], beside: Points, title: str) -> None:
    """Left, milliseconds stacked by phase; right, times as fast next to the bound of the FLOPs."""
    made, (left, right) = figure(columns=2, width=5.6, height=1.6 + 0.42 * len(names))
    at, start = range(len(names)), [0.0] * len(names)
    for phase, values in stacked.items():
        left.barh(at, values, left=start, label=phase, height=0.65)
        start = [a + b for a, b in zip(start, values, strict=True)]
    left.set(xlabel="milliseconds (medians)", yticks=list(at), yticklabels=names)
    size = 0.7 / len(beside)
    for i, (name, line) in enumerate(beside.items()):
        drawn = right.barh([a + (i - (len(beside) - 1) / 2) * size for a, _ in line], [b for _, b in line],
                           height=size, label=name, color=f"C{i + len(stacked)}")  # fmt: skip
        right.bar_label(drawn, fmt="%.2f", padding=2, fontsize="small")
    right.set(xlabel="prefill, times as fast as unpruned", yticks=list(at), yticklabels=[""] * len(names))
    right.margins(x=0.12)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18 - 0.3 / len(names)), ncols=3, fontsize="small",
                    frameon=False)  # fmt: skip
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    made.suptitle(title, fontsize="medium")
    save(made, path)
