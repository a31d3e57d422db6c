"""How much is left to tell by layer, and where in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from . import base


def horizon(summaries: Mapping[str, Mapping[str, Any]], layers: Sequence[int], threshold: float, title: str) -> bytes:
    """Mean |information| by layer, a line per kind of question; larger marks where it has vanished."""
    figure = base.figure(7.5, 4.2)
    axes = figure.subplots()
    for i, (kind, found) in enumerate(summaries.items()):
        most = max(found["strength"])
        share = np.array(found["strength"]) / (most or 1)
        style = base.style(i)
        at = found["horizon"]
        label = f"{kind}: horizon {'none' if at is None else at}, maximum {most:.2g}"
        axes.plot(layers, share, **style, markersize=4.5, linewidth=1.6, label=label)
        if at is not None:
            axes.plot([at], [share[list(layers).index(at)]], **style, markersize=11, alpha=0.55)
    axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label=f"{threshold:.0%} of the maximum")
    axes.set(xlabel="layer (blocks that saw every token)", ylabel="mean |information|, share of maximum", title=title)
    axes.set_ylim(bottom=0)
    base.across(axes, layers)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return base.png(figure)


def heatmaps(
    rows: Sequence[tuple[str, Image.Image, np.ndarray]],
    boxes: Sequence[Sequence[float]],
    layers: Sequence[int],
    title: str,
) -> bytes:
    """Information over the picture: a row per question, a column per layer, colours on one scale per row.

    Args:
        rows: what was asked, the picture as the model saw it, and `layers x windows` of information.
        boxes: left, top, right, bottom in [0, 1] of each window.
        layers: names of the columns.
    """
    figure = base.figure(1.5 * len(layers) + 2.2, 1.6 * len(rows) + 0.9)
    grid = figure.subplots(len(rows), len(layers), squeeze=False)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"layer {layer}", fontsize=9)
    for panels, (asked, picture, told) in zip(grid, rows, strict=True):
        limit = float(np.abs(told).max()) or 1.0
        grey = np.asarray(picture.convert("L").resize((240, 240)))
        for axes, values in zip(panels, told, strict=True):
            axes.imshow(grey, cmap="gray", extent=(0, 1, 1, 0), vmin=0, vmax=255)
            heat = np.zeros((240, 240))
            for (left, top, right, bottom), value in zip(boxes, values, strict=True):
                x, y, end_x, end_y = (round(240 * edge) for edge in (left, top, right, bottom))
                heat[y:end_y, x:end_x] = value
            strong = 0.85 * np.abs(heat) / limit  # where nothing is told, the picture shows
            axes.imshow(heat, cmap="PuOr_r", extent=(0, 1, 1, 0), vmin=-limit, vmax=limit, alpha=strong)
            axes.set(xticks=[], yticks=[])
        panels[0].set_ylabel(asked, fontsize=7)
        scale = base.need().cm.ScalarMappable(base.need().colors.Normalize(-limit, limit), cmap="PuOr_r")
        bar = figure.colorbar(scale, ax=list(panels), fraction=0.05, pad=0.01)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title)
    return base.png(figure)
