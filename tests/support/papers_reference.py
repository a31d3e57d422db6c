"""Published methods again, from their papers and released code: numpy, float64, loops, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenprune import Seen
from tokenprune.seen.prompt import Plain

Array = np.ndarray


def best_first(values: Sequence[float] | Array, places: Sequence[int] | None = None) -> list[int]:
    """Places of values from large to small; ties go to the lower place."""
    places = range(len(values)) if places is None else places
    return sorted(places, key=lambda i: (-values[i], i))


# -- prompts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A prompt as a scorer sees it, and the same numbers in float64. Queries and keys carry RoPE in `q` and `k`."""

    seen: Callable[[int], Seen]
    q: Array  # H p dh
    k: Array  # h p dh
    ones: Array  # p dh: ones with RoPE
    states: Array  # p d
    norm: Array  # d
    embeddings: Array  # s d
    shown: list[int]
    visual: list[int]
    question: int

    def attention(self, row: int) -> Array:
        """`H n`: softmax attention of one row over the columns up to its own, head by head; visual columns."""
        groups = len(self.q) // len(self.k)
        found = np.zeros((len(self.q), self.q.shape[1]))
        for head, q in enumerate(self.q):
            logits = self.k[head // groups, : row + 1] @ q[row] / math.sqrt(q.shape[1])
            exponents = np.exp(logits - logits.max())
            found[head, : row + 1] = exponents / exponents.sum()
        return found[:, self.visual]

    def text(self) -> list[int]:
        p = self.q.shape[1]
        return list(range(p - self.question, p)) or [p - 1]


def turned(states: Array, angles: Array) -> Array:
    """RoPE: the two halves of a head as one complex number per frequency."""
    half = states.shape[-1] // 2
    both = (states[..., :half] + 1j * states[..., half:]) * np.exp(1j * angles)
    return np.concatenate([both.real, both.imag], -1)


def draw(kind: str, seed: int, heads: tuple[int, int], n: int = 40, question: int = 6, d: int = 24) -> Drawn:
    """A random prompt of 3 columns, n visual tokens with text in their midst, and a question.

    `duplicates` copies every third token to the next, `equal` makes all alike; both without RoPE, so that they tie.
    """
    rng, dh = np.random.default_rng(seed), 8
    visual = [*range(3, 3 + n // 2), *range(5 + n // 2, 5 + n)]
    p = 5 + n + question
    q, k = (rng.standard_normal((h, p, dh)).astype(np.float32) for h in heads)
    states, embeddings = (rng.standard_normal((p, d)).astype(np.float32) for _ in range(2))
    if kind == "duplicates":
        for at in range(0, p - 1, 3):
            for rows in (k[0], k[-1], states, embeddings):
                rows[at + 1] = rows[at]
    if kind == "equal":
        for rows in (*k, states, embeddings):
            rows[:] = rows[0]
    angles = np.arange(p)[:, None] * 100.0 ** (-np.arange(dh // 2) / (dh // 2)) * (kind == "random")
    norm = rng.uniform(0.5, 1.5, d)
    cos, sin = (torch.from_numpy(np.tile(f(angles), 2)).float() for f in (np.cos, np.sin))

    def rotate(given: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        c, s = (cos, sin) if rows is None else (cos[rows], sin[rows])
        return given * c + torch.cat((-given[..., dh // 2 :], given[..., : dh // 2]), -1) * s

    def final(given: torch.Tensor) -> torch.Tensor:
        return given * torch.rsqrt(given.square().mean(-1, keepdim=True)) * torch.from_numpy(norm).float()

    def seen(keep: int) -> Seen:
        return Seen(
            layer=2,
            keep=keep,
            ids=torch.arange(p),
            columns=torch.tensor(visual),
            visual=torch.tensor(visual),
            question=question,
            states=torch.from_numpy(states),
            source=Plain(
                {"queries": torch.from_numpy(q), "keys": torch.from_numpy(k)},
                rotation=rotate,
                scale=dh**-0.5,
                normalise=final,
                entered=(torch.from_numpy(embeddings), torch.tensor(visual)),
            ),
        )

    wide = [x.astype(np.float64) for x in (q, k, states, embeddings)]
    q64, k64 = (turned(x, angles) for x in wide[:2])
    return Drawn(
        seen, q64, k64, turned(np.ones((p, dh)), angles), wide[2], norm, wide[3], list(visual), visual, question
    )


HEADS = {"mha": (4, 4), "gqa": (6, 2)}
KINDS = ("random", "duplicates", "equal")


# -- DART (arXiv 2502.11494) -----------------------------------------------------------------------------------------


def dart(prompt: Drawn, keep: int, pivots: tuple[int, int] = (4, 4)) -> list[int]:
    """Visual tokens in the order taken: pivots, then each pivot's least similar ones. Its budget: T per pivot."""
    size = [sum(abs(float(x)) for head in prompt.k for x in head[c]) for c in range(prompt.k.shape[1])]
    after = prompt.text() if prompt.question else []
    first = sorted(best_first(size, prompt.visual)[: min(pivots[0], keep)])
    asking = [*first, *sorted(best_first(size, after)[: pivots[1]])]
    x = [row / math.sqrt((row**2).mean()) * prompt.norm for row in prompt.states]
    taken, left = list(first), keep - len(first)
    base, more = divmod(left, len(asking)) if asking else (0, 0)
    for i, pivot in enumerate(asking):
        pool = [c for c in prompt.visual if c not in taken]
        cosine = {c: float(x[pivot] @ x[c] / np.linalg.norm(x[pivot]) / np.linalg.norm(x[c])) for c in pool}
        taken += sorted(pool, key=lambda c, near=cosine: (round(near[c], 12), c))[: base + (i < more)]
    return [prompt.visual.index(c) for c in taken]


# -- SparseVLM (arXiv 2410.04417) ------------------------------------------------------------------------------------


def raters(prompt: Drawn) -> list[int]:
    """Words whose relevance to the visual tokens lies above the mean; all of them if none does."""
    words = [len(prompt.embeddings) - len(prompt.text()) + i for i in range(len(prompt.text()))]
    relevance = np.zeros(len(words))
    for v in prompt.shown:
        logits = np.array([prompt.embeddings[v] @ prompt.embeddings[w] for w in words])
        exponents = np.exp(logits - logits.max())
        relevance += exponents / exponents.sum() / len(prompt.shown)
    chosen = [row for row, r in zip(prompt.text(), relevance, strict=True) if r > relevance.mean() + 1e-12]
    return chosen or prompt.text()


def sparsevlm(prompt: Drawn, heads: int | None = None, unbias: bool = False) -> Array:
    """v1.5: mean over heads, mean over raters. v2: divided by RoPE's own logits, over the heads that look most."""
    asked = raters(prompt)
    maps = []
    for row in asked:
        weights = prompt.attention(row)
        if unbias:
            weights = weights / np.array([prompt.ones[row] @ prompt.ones[c] / math.sqrt(8) for c in prompt.visual])
        maps.append(weights)
    by_head = np.array(maps).mean(0)
    if heads is not None:
        by_head = by_head[best_first(np.array(maps).sum((0, 2)))[:heads]]
    return by_head.mean(0)


def density_peaks(rows: Array, count: int) -> list[int]:
    """DPC-kNN centres, ascending. Of equally dense rows the lower one counts as denser."""
    m, dim = rows.shape
    squared = np.array([[((a - b) ** 2).sum() / dim for b in rows] for a in rows])
    distance, density = np.sqrt(squared), [math.exp(-sum(sorted(row)[:count]) / count) for row in squared]
    score = []
    for i in range(m):
        denser = [j for j in range(m) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * (min(distance[i, j] for j in denser) if denser else distance.max()))
    return sorted(best_first(score)[:count])


# -- FitPrune (arXiv 2409.10197) -------------------------------------------------------------------------------------


def fitprune(prompt: Drawn) -> tuple[Array, Array]:
    """Cross and self mass: the largest over heads, row by row."""
    cross = sum(prompt.attention(row).max(0) for row in prompt.text())
    own = sum(prompt.attention(row).max(0) for row in prompt.visual)
    return np.asarray(cross), np.asarray(own) / len(prompt.visual)


def fitprune_losses(sample: Sequence[tuple[Array, Array]], alpha: float) -> list[int]:
    """The fitting's simulation: in each layer, what both rankings would drop without losing `alpha` of their mass."""
    alive, lost = set(range(len(sample[0][0]))), []
    for masses in sample:
        dropped = []
        for mass in masses:
            order, gone = sorted(alive, key=lambda i, m=mass: (m[i], i)), set()
            for i in order:
                if sum(mass[j] for j in alive - gone - {i}) < mass.sum() * (1 - alpha):
                    break
                gone.add(i)
            dropped.append(gone)
        both = dropped[0] & dropped[1]
        alive -= both
        lost.append(len(both))
    return lost


# -- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictured:
    """A picture as a vision tower leaves it: smooth fields and noise, and attention with a long tail."""

    side: tuple[int, int]
    rows: Array  # n d: what left the projector
    heads: Array  # H n dh: keys of the last block
    attention: Array  # n: of the CLS row

    def __len__(self) -> int:
        return len(self.rows)


def pictured(seed: int) -> Pictured:
    rng = np.random.default_rng(seed)
    side = [(12, 12), (13, 11), (16, 9), (15, 12)][seed % 4]
    y, x = (grid.ravel() for grid in np.meshgrid(*(np.linspace(0, 1, length) for length in side), indexing="ij"))
    fields = np.array([np.sin(9 * (a * y + b * x) + c) for a, b, c in rng.uniform(-2, 2, (6, 3))]).T

    def states(d: int) -> Array:
        return fields @ rng.normal(size=(6, d)) + rng.uniform(0.1, 1, (len(x), 1)) * rng.normal(size=(len(x), d))

    heads = np.array([states(8) + 3 * rng.normal(size=8) for _ in range(4)])
    told = np.exp(1.5 * rng.normal(size=len(x)) + fields[:, 0])
    return Pictured(side, states(24), heads, told / (1 + told.sum()))


def cosine(a: Array, b: Array) -> float:
    size = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(a @ b / size) if size else 0.0


# -- HoloV (arXiv 2510.02912), the released rule -----------------------------------------------------------------------


def holov_worth(rows: Array, attention: Array, crops: list[list[int]], alpha: float = 0.09) -> list[float]:
    """Mean score of each crop. The variance of a token's likeness counts itself, with likeness 0, and divides by the
    others; it is scaled to the attention inside its own crop.
    """
    worth = []
    for crop in crops:
        told = [1000 * attention[j] for j in crop]
        varies = []
        for j in crop:
            likeness = [0.0 if k == j else cosine(rows[j], rows[k]) for k in crop]
            mean = sum(likeness) / (len(crop) - 1)
            varies.append(sum((s - mean) ** 2 for s in likeness) / (len(crop) - 1))
        scale = np.mean(told) / (np.mean(varies) + 1e-6)
        worth.append(float(np.mean([a + alpha * scale * v for a, v in zip(told, varies, strict=True)])))
    return worth


def holov(
    rows: Array, attention: Array, crops: list[list[int]], keep: int, give: bool = False, alpha: float = 0.09
) -> list[int]:
    """What stays. A crop that would get more tokens than it has loses them, and zero rows take their place: so there
    may be less than `keep`. With `give`, crops with room get them instead, as they get what rounding leaves: one each,
    the worthiest first.
    """
    worth = holov_worth(rows, attention, crops, alpha)
    order = best_first(worth)
    counts = [math.floor(keep * w / (sum(worth) + 1e-6)) for w in worth]
    for i in [] if give else order[: keep - sum(counts)]:
        counts[i] += 1
    counts = [min(count, len(crop)) for count, crop in zip(counts, crops, strict=True)]
    while give and sum(counts) < keep:
        for i in [i for i in order if counts[i] < len(crops[i])][: keep - sum(counts)]:
            counts[i] += 1
    return [j for crop, count in zip(crops, counts, strict=True) for j in best_first(attention, crop)[:count]]


# -- PruMerge (arXiv 2403.15388), the released rule --------------------------------------------------------------------


def prumerge_merged(rows: Array, keys: Array, attention: Array, kept: Sequence[int], near: int = 32) -> Array:
    """The kept rows, each with the `near` tokens added whose keys are most like its own, as much as their attention.

    `keys` (n, H dh): all heads side by side. Kept tokens are neighbours too.
    """
    merged = []
    for i in kept:
        likeness = [cosine(keys[i], keys[j]) for j in range(len(rows))]
        others = [j for j in best_first(likeness) if j != i]
        merged.append(rows[i] + sum(attention[j] * rows[j] for j in others[:near]))
    return np.array(merged)
