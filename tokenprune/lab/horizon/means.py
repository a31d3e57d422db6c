"""What the rows of several prompts say together, and the layer where nothing is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .probe import information

RULE = (
    "the first layer from which, there and at every later layer measured, the mean over prompts and windows of "
    "|information| is at most {threshold:g} of its largest value over the layers; null if there is none"
)


def strength(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean of |information| over prompts and windows, per layer."""
    return [float(f"{x:.6g}") for x in np.mean([np.abs(information(row)).mean(1) for row in rows], axis=0)]


def vanishes(strengths: Sequence[float], layers: Sequence[int], threshold: float) -> int | None:
    """The horizon: see RULE."""
    limit = threshold * max(strengths)
    above = [i for i, value in enumerate(strengths) if value > limit]
    first = above[-1] + 1 if above else 0
    return layers[first] if first < len(layers) else None


def summary(rows: Sequence[Mapping[str, Any]], layers: Sequence[int], threshold: float) -> dict[str, Any]:
    """What the rows of several prompts say together: mean probabilities, strength per layer, and the horizon."""
    strengths = strength(rows)
    return {
        "prompts": len(rows),
        "right": sum(row["right"] for row in rows),
        "full": round(float(np.mean([row["full"] for row in rows])), 6),
        "none": [round(float(p), 6) for p in np.mean([row["none"] for row in rows], axis=0)],
        "strength": strengths,
        "horizon": vanishes(strengths, layers, threshold),
    }


def oracle_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per layer the mean p of the right first token, and the share of prompts where it comes first."""

    def mean(name: str, key: str) -> list[float]:
        return [round(float(x), 6) for x in np.mean([row[name][key] for row in rows], axis=0)]

    return {name: {key: mean(name, key) for key in ("p", "right")} for name in ("oracle", "random")}
