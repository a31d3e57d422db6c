"""Qwen3-VL adds features of its tower after the first decoder blocks: those of the tokens that are left, no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import MIXED, ONE, RAGGED, Prompt, inputs, model
from masking import hidden_by_mask
from oracle import RECIPES, close

import tokenprune
from tokenprune.families.qwen3_vl import Qwen3VLAdapter

FAMILIES = ["qwen3_vl", "qwen3_vl_moe"]
BATCHES = {"one": ONE, "ragged": RAGGED, "mixed": MIXED}
own = Qwen3VLAdapter.additions


def equals_masking(family: str, prompts: list[Prompt], recipe: str) -> bool:
    given, lm = inputs(family, prompts), model(family)
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        found = lm(**given).logits[:, -1]
    assert pruning.state is not None
    with torch.no_grad(), hidden_by_mask(lm, given["attention_mask"], pruning.state.views):
        return close(found, lm(**given).logits[:, -1])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("recipe", ["diversity", "entropy", "pyramid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_that_is_left_gets_its_own_features(family: str, recipe: str, batch: str) -> None:
    assert equals_masking(family, BATCHES[batch], recipe)


def dropped(self: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
    return own(self, kwargs)[0], {}


def shifted(self: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
    """Every token gets the features of its neighbour."""
    left, added = own(self, kwargs)
    return left, {block: rows.roll(1, dims=1) for block, rows in added.items()}


def a_block_later(self: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
    left, added = own(self, kwargs)
    return left, {block + 1: rows for block, rows in added.items()}


@pytest.mark.parametrize("wrong", [dropped, shifted, a_block_later])
def test_wrong_additions_would_be_found(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3VLAdapter, "additions", wrong)
    assert not equals_masking("qwen3_vl", RAGGED, "diversity")
