"""Figures whose x axis has few values: every tick says where something is."""

from __future__ import annotations

from typing import Any

import pytest

from tokenprune.lab import plots
from tokenprune.lab.plots import base


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures in the order in which they are made."""
    figures: list[Any] = []
    monkeypatch.setattr(base, "png", lambda figure: figures.append(figure) or b"")
    return figures


def ticks(figure: Any) -> list[tuple[float, str]]:
    """Place and text of the ticks that are seen."""
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    texts = [text.get_text() for text in axes.get_xticklabels()]
    return [(at, text) for at, text in zip(axes.get_xticks(), texts, strict=True) if low <= at <= high]


def test_one_layer_is_one_tick(drawn: list[Any]) -> None:
    state = {"entropy": [1.5], "interval": [[1.5]] * 2, "ecl": {"layer": 1, "found": True}}
    plots.entropy({"prompts": 1, "depth": 1, "states": {"queries": state}}, "")
    plots.horizon({"read": {"strength": [0.2], "horizon": None}}, [3], 0.1, "")
    plots.lines({"a": [(2.0, 90.0)], "b": [(2.0, 80.0)]}, ("x", "y"), "", ("unpruned", 97.0))
    plots.lines({"a": [(48.3125, 90.0)]}, ("x", "y"), "")
    assert [ticks(figure) for figure in drawn] == [[(1, "1")], [(3, "3")], [(2, "2")], [(48.3125, "48.31")]]
    for figure, at in zip(drawn, (1, 3, 2, 48.3125), strict=True):
        low, high = figure.axes[0].get_xlim()
        assert low < at < high
        assert at - low == high - at


def test_layers_have_whole_ticks(drawn: list[Any]) -> None:
    plots.lines({"a": [(1.0, 9.0), (3.0, 8.0)], "b": [(2.0, 7.0)]}, ("x", "y"), "")
    assert ticks(drawn[0]) == [(1, "1"), (2, "2"), (3, "3")]
