"""LoRA before and after pruning: scores come from the adapted projections, answers equal the merged model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, RAGGED, build, inputs
from oracle import RECIPES, close
from peft import LoraConfig, get_peft_model

import tokenprune

LORA = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|k_proj|v_proj)", init_lora_weights=False)


@torch.no_grad()
def run(lm: Any, family: str) -> torch.Tensor:
    out = lm.generate(
        **inputs(family, RAGGED), max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(out.logits, dim=1)


@pytest.mark.works("Ecosystem", "PEFT LoRA")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_attached_before_or_after_pruning(family: str, when: str) -> None:
    torch.manual_seed(0)
    lm = build(family).eval()
    lm.generation_config.eos_token_id = None
    recipe = {
        "prune": [*RECIPES["entropy"], {"scorer": "random", "schedule": {"name": "fixed", "layer": 4, "keep": 2}}]
    }
    if when == "before":
        lora = get_peft_model(lm, LORA).eval()
        with tokenprune.prune(lora, recipe) as pruning:
            adapted = run(lora, family)
    else:
        with tokenprune.prune(lm, recipe) as pruning:
            plain = run(lm, family)
            lora = get_peft_model(lm, LORA).eval()
            adapted = run(lora, family)
        assert not close(adapted, plain)
    views = pruning.state.views
    merged = lora.merge_and_unload()
    with tokenprune.prune(merged, recipe) as pruning:
        expected = run(merged, family)
    assert all(torch.equal(views[layer].index, view.index) for layer, view in pruning.state.views.items())
    assert close(adapted, expected)
