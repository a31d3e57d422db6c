"""The contract of scorers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..api import prune
from ..builtin.schedules import Fixed
from ..parts.guard import NUMBERS
from ..parts.scorer import Scorer
from .base import Contract
from .cases import layer_of
from .families import ONE, RAGGED, Family
from .trials import KEEP, Tried, Words, scored


def check(tried: Tried, trial: str, n: int) -> None:
    """One finite number for each of n tokens."""
    score: Any = tried.of(trial)
    assert isinstance(score, torch.Tensor), f"expected a tensor, got {type(score).__name__}"
    assert score.shape == (n,), f"expected one number for each of {n} tokens, got the shape {tuple(score.shape)}"
    assert score.dtype in NUMBERS, f"expected real numbers, got {score.dtype}"
    assert score.device == tried.seen.states.device
    assert score.isfinite().all(), f"expected finite numbers, got {score.tolist()}"


class TestScorer(Contract):
    """What every scorer must do."""

    def test_its_settings_are_a_value(self, scorer: Scorer) -> None:
        self.check_value(scorer)

    def test_it_gives_one_finite_number_for_each_token(self, scorer: Scorer, family: Family) -> None:
        for tried in scored(scorer, family):
            check(tried, "once", tried.n)

    def test_it_gives_the_same_twice(self, scorer: Scorer, family: Family) -> None:
        for tried in scored(scorer, family):
            assert torch.equal(tried.of("once"), tried.of("again")), "two calls on one prompt gave different scores"

    def test_it_leaves_what_it_is_shown(self, scorer: Scorer, family: Family) -> None:
        """Also torch's random state: who samples answers would get others."""
        for tried in scored(scorer, family):
            assert tried.changed["once"] == [], (
                "work on a copy, such as seen.hidden.clone(), and on a Generator of your own"
            )

    def test_the_order_of_the_tokens_does_not_matter(self, scorer: Scorer, family: Family) -> None:
        if not scorer.equivariant:
            pytest.skip("it does not declare equivariant = True")
        for tried in scored(scorer, family):
            score = tried.of("once").double()
            torch.testing.assert_close(
                tried.of("in another order").double(),
                score[tried.order],
                rtol=1e-4,
                atol=1e-5 * float(score.abs().max()),
            )

    def test_it_takes_bfloat16(self, scorer: Scorer, family: Family) -> None:
        for tried in scored(scorer, family, torch.bfloat16):
            check(tried, "once", tried.n)

    def test_it_takes_one_token(self, scorer: Scorer, family: Family) -> None:
        for tried in scored(scorer, family):
            check(tried, "one token", 1)

    @pytest.mark.parametrize("trial", ["tokens alike", "pairs"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_it_takes_tokens_that_are_alike(
        self, scorer: Scorer, family: Family, dtype: torch.dtype, trial: str
    ) -> None:
        """A black picture has such: distances are zero, and so are variances."""
        for tried in scored(scorer, family, dtype):
            check(tried, trial, tried.n)

    @pytest.mark.parametrize("prompts", [ONE, RAGGED], ids=["one prompt", "ragged batch"])
    def test_the_model_answers(self, scorer: Scorer, family: Family, prompts: Any) -> None:
        """Inside the engine: every prompt keeps as many tokens as planned, and the answer is made of numbers."""
        model, layer = family.model(), layer_of(scorer)
        plan = {"scorer": scorer, "schedule": Fixed(layer=layer, keep=KEEP)}
        with torch.inference_mode(), prune(model, {"prune": [plan]}, processor=Words()) as pruning:
            made = model.generate(
                **family.inputs(prompts),
                max_new_tokens=2,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        assert pruning.state is not None
        view, visual = pruning.state.views[layer], pruning.state.visual
        kept = (visual.gather(1, view.index) & view.valid).sum(1)
        assert kept.tolist() == [min(KEEP, count) for count in pruning.state.counts]
        assert all(logits.isfinite().all() for logits in made.logits)
