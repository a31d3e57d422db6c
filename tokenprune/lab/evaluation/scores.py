"""Scores of an evaluation as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HEADER = ["task", "metric", "score", "± stderr", "visual tokens", "average over the layers", "left"]


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """A row per metric of each task, and once per task its visual tokens."""
    rows = []
    for task, scores in results["results"].items():
        seen = results["tokenprune"]["visual"].get(task)
        counts = ["", "", ""]
        if seen and seen["visual_tokens"]:
            total, left = seen["visual_tokens"], seen["visual_average"]
            counts = [f"{total:.1f}", f"{left:.1f}", f"{left / total:.1%}"]
        name = task
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, (int, float)) or re.search(r"_stderr(_clt|_clustered)?$", metric):
                continue
            error = scores.get(f"{metric}_stderr,{filtered}")
            deviation = f"{error:.4f}" if isinstance(error, float) else ""
            label = metric if filtered in ("none", "") else f"{metric} ({filtered})"
            rows.append([name, label, f"{value:.4f}", deviation, *counts])
            name, counts = "", ["", "", ""]
    return rows
