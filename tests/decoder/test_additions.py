"""What a decoder adds between its blocks reaches the columns that are left, each its own row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import ONE, RAGGED, Prompt, inputs, model
from masking import hidden_by_mask
from oracle import RECIPES, close

import tokenprune
from tokenprune.families.llava import LlavaAdapter

BLOCKS = (1, 3)


@pytest.fixture
def stacked() -> Any:
    """A LLaVA whose decoder adds rows after two blocks, as it gets them in `deepstack`."""
    lm, rows = copy.deepcopy(model("llava")), dict[int, torch.Tensor]()
    decoder = lm.model.language_model

    def take(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        rows.clear()
        rows.update(kwargs.pop("deepstack", None) or {})
        return args, kwargs

    def add(block: int, output: Any) -> Any:
        return output + rows[block] if block in rows else None

    decoder.register_forward_pre_hook(take, with_kwargs=True)
    for block in BLOCKS:
        decoder.layers[block].register_forward_hook(lambda module, args, output, block=block: add(block, output))
    return lm


class Stacked(LlavaAdapter):
    def additions(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
        left = dict(kwargs)
        return left, left.pop("deepstack", None) or {}


def given_to(prompts: list[Prompt]) -> dict[str, Any]:
    given = inputs("llava", prompts)
    b, s = given["input_ids"].shape
    draw = torch.Generator().manual_seed(3)
    visual = (given["input_ids"] == 5)[..., None]
    return {**given, "deepstack": {block: torch.randn(b, s, 64, generator=draw) * visual for block in BLOCKS}}


def pruned(lm: Any, given: dict[str, Any], recipe: str) -> tuple[torch.Tensor, Any]:
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        return lm(**given).logits[:, -1], pruning.state


@pytest.mark.parametrize("recipe", ["diversity", "entropy", "pyramid", "mixture"])
@pytest.mark.parametrize("prompts", [ONE, RAGGED], ids=["one", "ragged"])
def test_pruning_equals_masking(
    stacked: Any, prompts: list[Prompt], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenprune.families.llava.LlavaAdapter.additions", Stacked.additions)
    given = given_to(prompts)
    found, state = pruned(stacked, given, recipe)
    with torch.no_grad(), hidden_by_mask(stacked, given["attention_mask"], state.views):
        assert close(found, stacked(**given).logits[:, -1])
    without, _ = pruned(stacked, {**given, "deepstack": {}}, recipe)
    assert not close(found, without)


def test_keeping_all_is_no_pruning(stacked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.families.llava.LlavaAdapter.additions", Stacked.additions)
    given = given_to(RAGGED)
    keep = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}}]}
    with torch.no_grad():
        plain = stacked(**given).logits
        with tokenprune.prune(stacked, keep):
            assert torch.equal(stacked(**given).logits, plain)


def test_an_adapter_that_does_not_say_is_found(stacked: Any) -> None:
    """Proof that the tests above can fail: the decoder's own rows do not fit the columns that are left."""
    with pytest.raises(RuntimeError, match="size of tensor"):
        pruned(stacked, given_to(ONE), "entropy")
