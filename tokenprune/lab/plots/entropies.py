"""Entropy by layer and spectra, from `profile.summary`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import base


def entropy(
    summary: Mapping[str, Any], title: str, known: int | None = None, size: tuple[float, float] = (7, 4)
) -> bytes:
    """Fig. 2 of arXiv 2602.17196: matrix entropy by layer, with the collapse layer. From `profile.summary`.

    `known` is the model's layer, marked too; `size` in inches.
    """
    figure = base.figure(*size)
    axes = figure.subplots()
    layers = range(1, summary["depth"] + 1)
    for i, (state, found) in enumerate(summary["states"].items()):
        label = f"{state} ({'ECL' if found['ecl']['found'] else 'no collapse, steepest after'} {found['ecl']['layer']})"
        axes.plot(layers, found["entropy"], color=base.COLORS[i], marker=base.MARKERS[i], markersize=4, label=label)
        axes.fill_between(layers, *found["interval"], color=base.COLORS[i], alpha=0.25, linewidth=0)
        axes.axvline(found["ecl"]["layer"] + 0.5, color=base.COLORS[i], linestyle=("--", ":")[i % 2], linewidth=1.2)
    if known is not None:
        axes.axvline(known + 0.5, color="black", linewidth=1.6, label=f"ECL of the model: {known}")
    axes.set(xlabel="layer", ylabel="matrix entropy (nats)", title=title)
    base.across(axes, layers)
    axes.legend(title="band: 95 % over prompts" if summary["prompts"] > 1 else None)
    return base.png(figure)


def spectra(summary: Mapping[str, Any], title: str) -> bytes:
    """Fig. 3: the eigenvalues of the covariance of query and key states in some layers. From `profile.summary`."""
    figure = base.figure(10, 4)
    panels = figure.subplots(1, len(summary["states"]), sharey=True)
    for axes, (state, found) in zip(panels, summary["states"].items(), strict=True):
        lines = found["spectra"]
        shades = base.need().colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
        for i, (layer, values) in enumerate(lines.items()):
            shown = np.array(values)
            shown = shown[shown > shown[0] * 1e-6]  # the rest is round-off
            axes.loglog(range(1, len(shown) + 1), shown, color=shades[i], linewidth=1.6, label=f"L{layer}")
        axes.set(xlabel="rank of the eigenvalue", title=f"{state}")
    panels[0].set_ylabel("eigenvalue (sum 1)")
    panels[-1].legend(title="layer")
    figure.suptitle(title)
    return base.png(figure)
