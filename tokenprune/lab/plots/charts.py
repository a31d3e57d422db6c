"""Lines and bars of any measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import base


def lines(
    points: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    title: str,
    level: tuple[str, float] | None = None,
) -> bytes:
    """Marked lines through (x, y) by name, with a dashed level to compare them with."""
    figure = base.figure(7.5, 4.6 + 0.11 * len(points))
    axes = figure.subplots()
    for i, (name, line) in enumerate(points.items()):
        axes.plot(*zip(*line, strict=True), **base.style(i), alpha=0.9, label=name)
    if level is not None:
        axes.axhline(level[1], color="0.4", linestyle="--", linewidth=1, label=level[0])
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    base.across(axes, (x for line in points.values() for x, _ in line))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return base.png(figure)


def bars(
    names: Sequence[str],
    phases: Mapping[str, Sequence[float]],
    ratios: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    title: str,
) -> bytes:
    """A row per name: left, phases stacked; right, ratios side by side."""
    figure = base.figure(11, 1.9 + 0.5 * len(names))
    left, right = figure.subplots(1, 2)
    colors, start = iter(base.COLORS), np.zeros(len(names))
    at = np.arange(len(names))
    for phase, values in phases.items():
        left.barh(at, values, left=start, height=0.65, label=phase, color=next(colors))
        start += np.array(values)
    height = 0.7 / len(ratios)
    for i, (ratio, values) in enumerate(ratios.items()):
        offset = (i - (len(ratios) - 1) / 2) * height
        drawn = right.barh(at + offset, values, height=height, label=ratio, color=next(colors))
        right.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    right.margins(x=0.12)
    for axes, label, shown in ((left, labels[0], names), (right, labels[1], [""] * len(names))):
        axes.set(xlabel=label, yticks=at, yticklabels=shown)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.04 + 0.3 / len(names)), ncols=3, fontsize=8,
                    frameon=False)  # fmt: skip
    figure.suptitle(title)
    return base.png(figure)
