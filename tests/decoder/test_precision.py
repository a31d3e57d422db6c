"""Gradients, inference mode and int8 weights: pruning equals masking there too."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, RAGGED, inputs, logits, model
from masking import hidden_by_mask
from oracle import RECIPES, close
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForImageTextToText, TorchAoConfig
from transformers.modeling_layers import GradientCheckpointingLayer

import tokenprune
from tokenprune.errors import UnsupportedModelError

MODES: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
}
STAGED = ("mixture", "pyramid")


def in_mode(mode: AbstractContextManager[Any], family: str, recipe: Any) -> list[torch.Tensor]:
    """A prefill, a word, a second turn of several words, and `generate`."""
    lm, given, word = model(family), inputs(family, RAGGED), torch.full((3, 1), 17)
    with mode, tokenprune.prune(lm, recipe):
        out = lm(**given)
        found = [out.logits]
        mask = given["attention_mask"]
        for ids in (word, torch.tensor([[21, 22, 23]]).expand(3, -1)):
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1]), value=1)
            more = {"attention_mask": mask, "position_ids": mask.cumsum(1)[:, -ids.shape[1] :] - 1}
            out = lm(input_ids=ids, past_key_values=out.past_key_values, **more)
            found.append(out.logits)
        written = lm.generate(
            **given, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return [*found, logits(written)]


@pytest.mark.works("Precision and training", "no_grad, inference_mode, grad")
@pytest.mark.parametrize("recipe", STAGED)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_mode(family: str, mode: str, recipe: str) -> None:
    found = in_mode(MODES[mode](), family, {"prune": RECIPES[recipe]})
    expected = in_mode(torch.no_grad(), family, {"prune": RECIPES[recipe]})
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    keep_all = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}}]}
    assert not any(close(a, b) for a, b in zip(found, in_mode(torch.no_grad(), family, keep_all), strict=True))


@pytest.mark.parametrize("later", ["no_grad", "inference_mode"])
def test_a_cache_from_another_mode(later: str) -> None:
    """Prompt in one mode, next word in another."""
    lm, given, found = model("llava"), inputs("llava", RAGGED), []
    mask = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)
    for first in ("inference_mode", "no_grad"):
        with tokenprune.prune(lm, {"prune": RECIPES["mixture"]}):
            with MODES[first]():
                cache = lm(**given).past_key_values
            with MODES[later]():
                found.append(
                    lm(input_ids=torch.full((3, 1), 17), attention_mask=mask, past_key_values=cache).logits.clone()
                )
    assert torch.equal(*found)


# -- gradients ---------------------------------------------------------------------------------------------------


def with_labels(family: str) -> dict[str, torch.Tensor]:
    """Only the last three columns of each prompt count: no dropped token is a label."""
    given = inputs(family, RAGGED)
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -3:] = given["input_ids"][:, -3:]
    return {**given, "labels": labels}


def gradients(lm: Any, given: dict[str, torch.Tensor], **more: Any) -> dict[str, torch.Tensor]:
    lm.zero_grad()
    lm(**given, **more).loss.backward()
    return {name: weight.grad.clone() for name, weight in lm.named_parameters() if weight.grad is not None}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Up to rounding, which is as large as the largest gradients make it."""
    largest = max(float(grad.abs().max()) for grad in b.values())
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5 * largest) for name in a)


CHECKPOINTING = {"plain": None, "checkpointed": False, "checkpointed, reentrant": True}


@pytest.mark.works("Precision and training", "gradients, also under gradient checkpointing")
@pytest.mark.parametrize("recipe", STAGED)
@pytest.mark.parametrize("how", CHECKPOINTING)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family: str, how: str, recipe: str) -> None:
    """Of every weight, the vision tower's too: those of the masked model."""
    lm, given = copy.deepcopy(model(family)), with_labels(family)
    if how != "plain":
        lm.train()
        lm.gradient_checkpointing_enable({"use_reentrant": CHECKPOINTING[how]})
        lm.enable_input_require_grads()
        if "__call__" in vars(GradientCheckpointingLayer):  # transformers 5.19
            refused = pytest.raises(UnsupportedModelError, match="gradient_checkpointing_disable")
            with tokenprune.prune(lm, {"prune": RECIPES[recipe]}), refused:
                lm(**given)
            return
    with tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        pruned = gradients(lm, given)
    with hidden_by_mask(lm, given["attention_mask"], pruning.state.views):
        masked = gradients(lm, given, use_cache=False)
    assert len(pruned) > 90
    assert same(pruned, masked)
    assert not same(pruned, gradients(lm, given))


@pytest.mark.parametrize("merge", [None, "nearest"])
def test_gradients_reach_dropped_tokens_that_were_merged(merge: str | None) -> None:
    """Dropped before the decoder, a token has no part in the answer, unless it was folded into another one."""
    lm, found = copy.deepcopy(model("llava")), []
    schedule = {"name": "fixed", "layer": 0, "keep": 4}
    handle = lm.model.multi_modal_projector.register_forward_hook(lambda m, args, out: found.append(out))
    with tokenprune.prune(lm, {"prune": [{"scorer": "random", "schedule": schedule, "merge": merge}]}):
        loss = lm(**with_labels("llava")).loss
    handle.remove()
    (grad,) = torch.autograd.grad(loss, found)
    touched = grad.reshape(-1, grad.shape[-1]).abs().sum(-1) > 0
    assert len(touched) == 3 * 16
    assert int(touched.sum()) == (8 if merge is None else len(touched))


@pytest.mark.works("Precision and training", "a LoRA training step")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_training_step(family: str) -> None:
    """Gradients of the masked model, for the adapter alone; a few steps lower the loss that they follow."""
    torch.manual_seed(0)
    target = r".*language_model.*(q_proj|v_proj)"
    lm = get_peft_model(copy.deepcopy(model(family)), LoraConfig(r=4, target_modules=target, init_lora_weights=False))
    given = with_labels(family)
    losses = []
    with tokenprune.prune(lm, {"prune": RECIPES["mixture"]}) as pruning:
        lm.train()
        pruned = gradients(lm, given)
    with hidden_by_mask(lm.base_model.model, given["attention_mask"], pruning.state.views):
        masked = gradients(lm, given, use_cache=False)
    assert same(pruned, masked)
    assert all("lora" in name for name in pruned)
    assert not same(pruned, gradients(lm, given))
    optimizer = torch.optim.SGD([weight for weight in lm.parameters() if weight.requires_grad], lr=1e-3)
    with tokenprune.prune(lm, {"prune": RECIPES["withdraw"]}):
        for _ in range(4):
            optimizer.zero_grad()
            loss = lm(**given).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


# -- int8 weights ------------------------------------------------------------------------------------------------


def loaded_in_int8(family: str, folder: Path) -> Any:
    model(family).save_pretrained(folder)
    config = TorchAoConfig(Int8WeightOnlyConfig())
    lm = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config).eval()
    lm.generation_config = model(family).generation_config
    return lm


def quantized_in_place(family: str, folder: Path) -> Any:
    lm = copy.deepcopy(model(family))
    quantize_(lm.model.language_model, Int8WeightOnlyConfig())
    return lm


INT8 = {"from_pretrained": loaded_in_int8, "quantize_": quantized_in_place}


@pytest.mark.works("Precision and training", "int8 weights by torchao")
@pytest.mark.parametrize("recipe", STAGED)
@pytest.mark.parametrize("how", INT8)
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights(family: str, how: str, recipe: str, tmp_path: Path) -> None:
    """torchao's weight-only int8: the `next` block's projections, which the engine runs itself, are quantised too."""
    lm, given = INT8[how](family, tmp_path), inputs(family, RAGGED)
    assert "Int8" in type(lm.model.language_model.layers[3].self_attn.q_proj.weight).__name__

    @torch.no_grad()
    def run() -> torch.Tensor:
        return logits(
            lm.generate(**given, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
        )

    with tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        pruned = run()
    with hidden_by_mask(lm, given["attention_mask"], pruning.state.views):
        masked = run()
    assert close(pruned, masked)
    assert not close(pruned, run())
