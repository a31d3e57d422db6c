"""SparseVLM (arXiv 2410.04417) and SparseVLM+ against their loops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, RAGGED, inputs, model
from folds import FOLDS, recycled
from papers_reference import HEADS, KINDS, best_first, draw, raters, sparsevlm
from papers_reference import density_peaks as slow_density_peaks
from tokenprune_papers.sparsevlm import Recycle, SparseVLM, _gaps, best_of, density_peaks

import tokenprune
from tokenprune import Scorer, Seen

SEEDS = range(10)
PLUS = SparseVLM(recycle=False, heads=3, unbias=True)


@dataclass(frozen=True)
class Watched(Scorer):
    """Another scorer; writes down what it was shown and gave, by layer and prompt."""

    inner: Scorer
    found: dict[tuple[int, int], tuple[Seen, torch.Tensor]] = field(default_factory=dict)

    def score(self, seen: Seen) -> torch.Tensor:
        score = self.inner.score(seen)
        self.found[seen.layer, sum(layer == seen.layer for layer, _ in self.found)] = seen, score
        return score


def order(score: torch.Tensor, keep: int) -> list[int]:
    return score.argsort(descending=True, stable=True)[:keep].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_takes_the_same_tokens_in_the_same_order(seed: int, heads: str, kind: str) -> None:
    """The best tokens by raters' attention, then the centres; and the merger writes the clusters' means."""
    prompt = draw(kind, seed, HEADS[heads], n=75)
    rating = best_first(np.round(sparsevlm(prompt), 12))
    for keep in (1, 2, 20, 33, 74):
        seen = prompt.seen(keep)
        score = SparseVLM().score(seen)
        best, pool, count = recycled(75, keep)
        candidates = sorted(rating[best : best + pool])
        hidden = prompt.states[prompt.visual]
        centres = [candidates[c] for c in slow_density_peaks(hidden[candidates], count)]
        assert order(score, keep) == [*rating[:best], *centres]
        kept = sorted(order(score, keep))
        folded = Recycle().merge(seen.hidden, torch.tensor(kept), replace(seen, scores=score))
        np.testing.assert_allclose(folded[kept], FOLDS["recycle"](hidden, kept, score.numpy()), atol=1e-5)
        untouched = [i for i in kept if i not in centres]
        assert torch.equal(folded[untouched], seen.hidden[untouched])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("seed", SEEDS)
def test_plus_takes_the_same_tokens_in_the_same_order(seed: int, heads: str, kind: str) -> None:
    prompt = draw(kind, seed, HEADS[heads])
    expected = best_first(np.round(sparsevlm(prompt, heads=3, unbias=True), 12))
    assert order(PLUS.score(prompt.seen(10)), 40) == expected
    assert order(SparseVLM(recycle=False).score(prompt.seen(10)), 40) == best_first(np.round(sparsevlm(prompt), 12))
    if kind == "random":
        assert expected != best_first(sparsevlm(prompt, heads=3))
        assert expected != best_first(sparsevlm(prompt, unbias=True))


PUBLISHED = [  # tokens before, kept by attention, recycled, after: the released v1.5's counts and its formulas
    *((576, 300, 9), (309, 200, 4), (204, 110, 3)),
    *((576, 303, 9), (312, 110, 7), (117, 36, 3)),
    *((576, 66, 16), (82, 30, 2), (32, 17, 1)),
]


@pytest.mark.parametrize(("n", "best", "more"), PUBLISHED)
def test_counts_split_into_the_released_ones(n: int, best: int, more: int) -> None:
    assert best_of(n, best + more) == best
    assert recycled(n, best + more)[::2] == (best, more)


@pytest.mark.parametrize("n", [1, 2, 5, 31, 100])
def test_every_count_can_be_split(n: int) -> None:
    for keep in range(1, n):
        best = best_of(n, keep)
        assert best == recycled(n, keep)[0]
        assert 0 <= best < keep


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", ["random", "lattice", "duplicates", "equal"])
def test_centres_are_density_peaks(kind: str, count: int) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows = rng.integers(-1, 2, (20, 4)).astype(float) if kind == "lattice" else rng.standard_normal((20, 16))
        rows = {"duplicates": rows[np.arange(20) // 2], "equal": rows[np.zeros(20, int)]}.get(kind, rows)
        rows = rows.astype(np.float32).astype(np.float64)
        found = density_peaks(_gaps(torch.from_numpy(rows).float()), count)
        assert found.tolist() == slow_density_peaks(rows, count)


def test_far_rows_do_not_underflow() -> None:
    """Hidden states of real models are large: exp(-distance^2) is 0 for all of them, but some are denser still."""
    rows = 1000 * torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    squared = (rows.double()[:, None] - rows.double()).square().sum(-1) / 16
    sparsity = squared.sort().values[:, :2].mean(-1)
    assert sparsity.neg().exp().eq(0).all()
    assert density_peaks(_gaps(rows), 2).tolist() == sorted(sparsity.argsort(stable=True)[:2].tolist()) != [0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_enters_the_next_block_is_folded(family: str) -> None:
    """In the model, every stage and prompt: the rows that enter the block are the means made by hand."""
    lm, into, entered = model(family), {}, {}
    schedule = {"name": "table", "layers": [2, 4], "keep": [0.6, 0.3]}
    watched = Watched(SparseVLM(), into)
    recipe = {"prune": [{"scorer": watched, "schedule": schedule, "merge": "recycle", "positions": "compact"}]}
    with torch.no_grad(), tokenprune.prune(lm, recipe) as pruning:
        lm(**inputs(family, RAGGED))
        state = pruning.state
        handles = [
            lm.model.language_model.layers[layer].register_forward_pre_hook(
                lambda module, args, layer=layer: entered.update({layer: args[0]})
            )
            for layer in (2, 4)
        ]
        into.clear()
        lm(**inputs(family, RAGGED))
        for handle in handles:
            handle.remove()
    assert state is not None
    rows = [row for row, count in enumerate(state.counts) if count]
    assert len(into) == 2 * len(rows) == 4
    for (layer, i), (seen, score) in into.items():
        row, view = rows[i], state.views[layer]
        kept = sorted(order(score, seen.keep))
        hidden = seen.hidden.double().numpy()
        expected = FOLDS["recycle"](hidden, kept, score.double().numpy())
        columns = seen.columns[kept] + view.span - state.full_view.lengths[row]
        places = [int(((view.index[row] == column) & view.valid[row]).nonzero()[0]) for column in columns]
        np.testing.assert_allclose(entered[layer][row, places], expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(expected, hidden[kept], atol=1e-3)


def test_holes_of_a_tower_do_not_rate() -> None:
    prompt = draw("random", 3, (4, 2))
    expected = order(SparseVLM(recycle=False).score(prompt.seen(5)), 40)
    seen = prompt.seen(5)
    states, shown = seen.embeddings, seen.shown
    holed = torch.cat([states, torch.full((2, states.shape[1]), float("nan"))])[[*range(3), -1, -2, *range(3, 51)]]
    source = replace(seen.source, entered=(holed, torch.cat([torch.tensor([3, 4]), shown + 2])))
    seen = replace(seen, source=source)
    assert order(SparseVLM(recycle=False).score(seen), 40) == expected


@pytest.mark.parametrize("mutant", ["all words rate", "last row", "no bias", "all heads"])
def test_the_reference_can_fail(mutant: str) -> None:
    prompt = draw("random", 0, (6, 2))
    expected = best_first(sparsevlm(prompt, heads=3, unbias=True))
    assert raters(prompt) != prompt.text()
    wrong: dict[str, Any] = {
        "all words rate": lambda: prompt.seen(5).attention("text").mean((0, 1)),
        "last row": lambda: prompt.seen(5).attention("last").mean((0, 1)),
        "no bias": lambda: SparseVLM(recycle=False, heads=3).score(prompt.seen(5)),
        "all heads": lambda: SparseVLM(recycle=False, unbias=True).score(prompt.seen(5)),
    }
    assert order(wrong[mutant](), 40) != expected


def test_heads_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        SparseVLM(heads=0)
