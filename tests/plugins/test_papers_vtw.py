"""VTW's search (arXiv 2405.05803) against a masked model."""

from __future__ import annotations

import pytest
import tokenprune_papers.vtw as papers
import torch
from families import DEPTH, inputs, model
from fitted import fitted
from masking import hidden_by_mask

from tokenprune.recipe import load
from tokenprune.state.view import View

PROMPTS = [(1, (3, "image", 9)), (2, (2, "image", 4)), (7, (4, "image", 2, "image", 5))]


@torch.no_grad()
def divergences(first: int) -> list[float]:
    """Mean KL(p_d || p_full) by layer; the model runs whole, the picture is hidden by a mask."""
    lm, found = model("llava"), []
    for d in range(first, DEPTH):
        total = 0.0
        for prompt in PROMPTS:
            given = inputs("llava", [prompt])
            full = lm(**given).logits[0, -1].double().softmax(-1)
            text = (given["input_ids"] != 5).nonzero()[:, 1][None]
            view = View(text, torch.ones_like(text, dtype=torch.bool), (text.shape[1],), given["input_ids"].shape[1])
            with hidden_by_mask(lm, given["attention_mask"], {d: view}):
                hidden = lm(**given).logits[0, -1].double().softmax(-1)
            total += sum(float(p * (p / q).log()) for p, q in zip(hidden, full, strict=True))
        found.append(total / len(PROMPTS))
    return found


@pytest.mark.parametrize("first", [1, 3])
def test_the_first_layer_within_eta_is_found(first: int) -> None:
    expected = divergences(first)
    given = [inputs("llava", [prompt]) for prompt in PROMPTS]
    found = set()
    for eta in [kl * 1.001 for kl in expected]:
        recipe = fitted(papers.Withdrawal(eta, first), given)
        layer = load(recipe).passes[0].schedule.layer
        assert layer == first + next(i for i, kl in enumerate(expected) if kl <= eta)
        found.add(layer)
    assert len(found) > 1


def test_an_eta_that_no_layer_meets_is_said() -> None:
    with pytest.raises(ValueError, match="no layer comes within"):
        fitted(papers.Withdrawal(0.0, 1), [inputs("llava", PROMPTS[:1])])


@pytest.mark.parametrize("settings", [{"first": DEPTH}, {"eta": -1.0, "first": 1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="first must be"):
        fitted(papers.Withdrawal(**settings), [])


def test_no_prompts_no_layer() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fitted(papers.Withdrawal(first=1), [])
