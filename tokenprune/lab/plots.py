"""Figures of `profile`, `horizon`, `bench` and `sweep` as PNG bytes. Only here is matplotlib needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import TokenpruneError

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")
"""Okabe and Ito: told apart by every kind of colour vision; markers differ as well."""

MARKERS = "osD^vPX"


def need() -> Any:
    """matplotlib, or a TokenpruneError that says how to get it."""
    try:
        import matplotlib.cm
        import matplotlib.figure
    except ImportError as error:
        raise TokenpruneError(f"figures need matplotlib ({error}): pip install matplotlib") from error
    return matplotlib


def missing() -> str | None:
    """Why there are no figures and how to get them, in a line; None where there is matplotlib."""
    try:
        need()
    except TokenpruneError as error:
        return f"figures were left out: {error}, and run the same command again"
    return None


def draw(figures: Mapping[str, Callable[[], bytes]]) -> dict[str, bytes | None]:
    """Figures by the names of their files; None instead of each where there is no matplotlib."""
    left_out = missing() is not None
    return {name: None if left_out else figure() for name, figure in figures.items()}


def entropy(
    summary: Mapping[str, Any], title: str, known: int | None = None, size: tuple[float, float] = (7, 4)
) -> bytes:
    """Fig. 2 of arXiv 2602.17196: matrix entropy by layer, with the collapse layer. From `profile.summary`.

    `known` is the model's layer, marked too; `size` in inches.
    """
    figure = _figure(*size)
    axes = figure.subplots()
    layers = range(1, summary["depth"] + 1)
    for i, (state, found) in enumerate(summary["states"].items()):
        label = f"{state} ({'ECL' if found['ecl']['found'] else 'no collapse, steepest after'} {found['ecl']['layer']})"
        axes.plot(layers, found["entropy"], color=COLORS[i], marker=MARKERS[i], markersize=4, label=label)
        axes.fill_between(layers, *found["interval"], color=COLORS[i], alpha=0.25, linewidth=0)
        axes.axvline(found["ecl"]["layer"] + 0.5, color=COLORS[i], linestyle=("--", ":")[i % 2], linewidth=1.2)
    if known is not None:
        axes.axvline(known + 0.5, color="black", linewidth=1.6, label=f"ECL of the model: {known}")
    axes.set(xlabel="layer", ylabel="matrix entropy (nats)", title=title)
    _across(axes, layers)
    axes.legend(title="band: 95 % over prompts" if summary["prompts"] > 1 else None)
    return _png(figure)


def spectra(summary: Mapping[str, Any], title: str) -> bytes:
    """Fig. 3: the eigenvalues of the covariance of query and key states in some layers. From `profile.summary`."""
    figure = _figure(10, 4)
    panels = figure.subplots(1, len(summary["states"]), sharey=True)
    for axes, (state, found) in zip(panels, summary["states"].items(), strict=True):
        lines = found["spectra"]
        shades = need().colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
        for i, (layer, values) in enumerate(lines.items()):
            shown = np.array(values)
            shown = shown[shown > shown[0] * 1e-6]  # the rest is round-off
            axes.loglog(range(1, len(shown) + 1), shown, color=shades[i], linewidth=1.6, label=f"L{layer}")
        axes.set(xlabel="rank of the eigenvalue", title=f"{state}")
    panels[0].set_ylabel("eigenvalue (sum 1)")
    panels[-1].legend(title="layer")
    figure.suptitle(title)
    return _png(figure)


def horizon(summaries: Mapping[str, Mapping[str, Any]], layers: Sequence[int], threshold: float, title: str) -> bytes:
    """Mean |information| by layer, a line per kind of question; larger marks where it has vanished."""
    figure = _figure(7.5, 4.2)
    axes = figure.subplots()
    for i, (kind, found) in enumerate(summaries.items()):
        most = max(found["strength"])
        share = np.array(found["strength"]) / (most or 1)
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        at = found["horizon"]
        label = f"{kind}: horizon {'none' if at is None else at}, maximum {most:.2g}"
        axes.plot(layers, share, **style, markersize=4.5, linewidth=1.6, label=label)
        if at is not None:
            axes.plot([at], [share[list(layers).index(at)]], **style, markersize=11, alpha=0.55)
    axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label=f"{threshold:.0%} of the maximum")
    axes.set(xlabel="layer (blocks that saw every token)", ylabel="mean |information|, share of maximum", title=title)
    axes.set_ylim(bottom=0)
    _across(axes, layers)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return _png(figure)


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
    figure = _figure(1.5 * len(layers) + 2.2, 1.6 * len(rows) + 0.9)
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
        scale = need().cm.ScalarMappable(need().colors.Normalize(-limit, limit), cmap="PuOr_r")
        bar = figure.colorbar(scale, ax=list(panels), fraction=0.05, pad=0.01)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title)
    return _png(figure)


def lines(
    points: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    title: str,
    level: tuple[str, float] | None = None,
) -> bytes:
    """Marked lines through (x, y) by name, with a dashed level to compare them with."""
    figure = _figure(7.5, 4.6 + 0.11 * len(points))
    axes = figure.subplots()
    for i, (name, line) in enumerate(points.items()):
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[(i + i // len(COLORS)) % len(MARKERS)]}
        axes.plot(*zip(*line, strict=True), **style, alpha=0.9, label=name)
    if level is not None:
        axes.axhline(level[1], color="0.4", linestyle="--", linewidth=1, label=level[0])
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    _across(axes, (x for line in points.values() for x, _ in line))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def bars(
    names: Sequence[str],
    phases: Mapping[str, Sequence[float]],
    ratios: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    title: str,
) -> bytes:
    """A row per name: left, phases stacked; right, ratios side by side."""
    figure = _figure(11, 1.9 + 0.5 * len(names))
    left, right = figure.subplots(1, 2)
    colors, start = iter(COLORS), np.zeros(len(names))
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
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    """A figure that belongs to no window: drawn by Agg, whatever backend is set."""
    return need().figure.Figure(figsize=(width, height), layout="constrained")


def _across(axes: Any, values: Iterable[float]) -> None:
    """Whole ticks over these x as far as they go; if there is one x only, its own."""
    low, *others = set(values)
    if others:
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set(xlim=(low - 1, low + 1), xticks=[low], xticklabels=[f"{low:.4g}"])
    axes.grid(alpha=0.3)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()
