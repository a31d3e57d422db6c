"""Mergers again, in loops and float64: what the kept tokens become."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rows = np.ndarray
Fold = Callable[[Rows, list[int], np.ndarray], Rows]
"""`fold(hidden, kept, score)`: the rows of the kept tokens, in order; `score` is what the pass's scorer gave."""


def nearest(hidden: Rows, kept: list[int], score: np.ndarray) -> Rows:
    """Each dropped token joins the most similar kept one."""
    unit = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-12)
    groups: dict[int, list[int]] = {k: [k] for k in kept}
    for i in range(len(hidden)):
        if i not in groups:
            groups[kept[int(np.argmax([unit[i] @ unit[k] for k in kept]))]].append(i)
    return np.array([hidden[groups[k]].mean(0) for k in kept])


def recycled(n: int, keep: int) -> tuple[int, int, int]:
    """SparseVLM's counts: best tokens, recycled tokens, clusters, so that best and clusters are `keep`."""
    for best in range(keep - 1, -1, -1):
        pool = int((n - best) * 0.3) + 1
        count = int(pool / 10) + 1
        if best + count <= keep:
            return best, pool, count
    return 0, int(n * 0.3) + 1, keep


def recycle(hidden: Rows, kept: list[int], score: np.ndarray) -> Rows:
    """SparseVLM's means: by score come the best tokens, the centres, the other recycled tokens, the rest."""
    best, pool, _ = recycled(len(hidden), len(kept))
    order = np.argsort(-score, kind="stable").tolist()
    centres = sorted(order[best : len(kept)])
    groups: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for i in order[len(kept) : best + pool]:
        groups[centres[int(np.argmin([((hidden[i] - hidden[c]) ** 2).sum() for c in centres]))]].append(i)
    return np.array([hidden[groups.get(k, [k])].mean(0) for k in kept])


FOLDS: dict[str, Fold] = {"nearest": nearest, "recycle": recycle}
