"""What every figure is made of: matplotlib if it is there, colours, axes and PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...errors import TokenpruneError

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")
"""Okabe and Ito: told apart by every kind of colour vision; markers differ as well."""

MARKERS = "osD^vPX"


def style(number: int) -> dict[str, str]:
    """Of a line among others: where the colours begin again the markers are other ones."""
    marker = (number + number // len(COLORS)) % len(MARKERS)
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[marker]}


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


def figure(width: float, height: float) -> Any:
    """A figure that belongs to no window: drawn by Agg, whatever backend is set."""
    return need().figure.Figure(figsize=(width, height), layout="constrained")


def across(axes: Any, values: Iterable[float]) -> None:
    """Whole ticks over these x as far as they go; if there is one x only, its own."""
    low, *others = set(values)
    if others:
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set(xlim=(low - 1, low + 1), xticks=[low], xticklabels=[f"{low:.4g}"])
    axes.grid(alpha=0.3)


def png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()
