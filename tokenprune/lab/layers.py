"""Layers of one model as they are written on the command line."""

from __future__ import annotations

from ..errors import LayerError


def read_layers(text: str | None, low: int, high: int) -> list[int] | None:
    """`1,2,16` as ascending numbers; None for None. LayerError unless all are from `low` to `high`."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and low <= int(part) <= high for part in parts):
        raise LayerError(f"expected layers from {low} to {high} such as {low},{high}, got {text!r}")
    return sorted({int(part) for part in parts})
