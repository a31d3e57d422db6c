"""FitPrune (arXiv 2409.10197) against its loops: score, published tables, fitting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenprune_papers.fitprune as papers
import torch
from families import DEPTH, inputs, model
from fitted import fitted
from papers_reference import HEADS, KINDS, best_first, draw, fitprune, fitprune_losses

from tokenprune.plan.cost import DecoderSize
from tokenprune.plan.shapes import PUBLISHED
from tokenprune.plan.stages import plan_stages
from tokenprune.recipe import load

# The released table for 60 and 90 per cent: tokens deleted in each layer.
SIXTY = [14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 11, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0]
NINETY = [262, 153, 80, 19, 13, 1, 2, *[0] * 8, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("seed", range(10))
def test_it_ranks_by_cross_times_self(seed: int, heads: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = draw(kind, seed, HEADS[heads])
    cross, own = fitprune(prompt)
    score = papers.FitPrune().score(prompt.seen(10))
    np.testing.assert_allclose(score, cross * own, rtol=1e-5)
    found = score.argsort(descending=True, stable=True).tolist()
    assert found == best_first(np.round(cross * own, 12))
    monkeypatch.setattr(papers, "ROWS", 7)  # in chunks
    np.testing.assert_allclose(papers.FitPrune().score(prompt.seen(10)), score, rtol=1e-5)
    if kind == "random":
        assert found != best_first(cross)
        assert found != best_first(own)


@pytest.mark.parametrize(("preset", "deleted"), [("flops-60", SIXTY), ("flops-90", NINETY)])
def test_presets_are_the_released_tables(preset: str, deleted: list[int]) -> None:
    """What layer l deletes is gone from block l + 1 on; the savings are the promised ones."""
    assert len(deleted) == 32
    stages = plan_stages(load(f"fitprune@{preset}"), 32, [576], {})
    plan = {layer: stage.kept[0] for layer, stage in stages.items()}
    sizes = PUBLISHED["llava-1.5-7b"]
    assert sizes.tokens(plan, 576) == [576 - sum(deleted[:block]) for block in range(32)]
    assert 1 - sizes.flops_share(plan, 576, 0) == pytest.approx(int(preset[-2:]) / 100, abs=0.03)


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_the_simulation_drops_what_both_rankings_can_spare(alpha: float) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sample = [(rng.random(15), rng.random(15) ** 2) for _ in range(5)]
        found = papers.simulate([tuple(map(torch.from_numpy, pair)) for pair in sample], alpha)
        assert found == fitprune_losses(sample, alpha)
        assert alpha > 0 or not any(found)
        assert alpha < 1 or found == [15, 0, 0, 0, 0]


@pytest.mark.parametrize("reduction", [0.3, 0.6])
def test_a_fitted_table_saves_what_was_asked(reduction: float) -> None:
    prompts = [inputs("llava", [(seed, (3, "image", 9))]) for seed in range(3)]
    table = fitted(papers.Fit(reduction), prompts)
    built = load(table)
    stages = plan_stages(built, DEPTH, [16], {})
    plan = {layer: stage.kept[0] for layer, stage in stages.items()}
    saved = 1 - DecoderSize.of(model("llava").config).flops_share(plan, 16, 0)
    assert saved == pytest.approx(reduction, abs=0.15)  # 16 tokens, whole ones, rounded down
    assert table["prune"][0]["schedule"]["layers"] == [f"{layer}/{DEPTH}" for layer in plan]


def test_the_masses_are_those_of_the_unpruned_model() -> None:
    """As the eager model's own attention has them, every block."""
    prompt = inputs("llava", [(1, (3, "image", 9))])
    seen: list[Any] = []
    fit = papers.simulate
    try:
        papers.simulate = lambda sample, alpha: seen.append(sample) or fit(sample, alpha)
        fitted(papers.Fit(), [prompt])
    finally:
        papers.simulate = fit
    with torch.no_grad():
        maps = model("llava", "eager")(**prompt, output_attentions=True).attentions
    assert len(seen[0]) == DEPTH - 1
    for (cross, own), weights in zip(seen[0], maps, strict=False):
        largest = weights[0].amax(0)[:, 3:19]
        torch.testing.assert_close(cross.float(), largest[19:].sum(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own.float(), largest[3:19].sum(0) / 16, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduction", [0.0, 1.0, 60])
def test_reductions_that_make_no_sense_are_refused(reduction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        fitted(papers.Fit(reduction), [])


def test_no_pictures_no_table() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fitted(papers.Fit(), [])
