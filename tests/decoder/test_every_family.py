"""Every family that has a file: the oracle, what its blocks see, later turns, beams; each right or refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import BATCHES, EVERY, ONE, RAGGED, Prompt, answer, inputs, logits, model
from masking import hidden_by_mask
from oracle import ATTENTIONS, close, unpruned

import tokenprune
from tokenprune.contract.reference import reference
from tokenprune.errors import LayerError, PromptError, ScorerError
from tokenprune.model.anatomy import STATES, Anatomy

NAMES = ("single", "stages", "layer 0", "nothing left")


def plan(family: str, name: str) -> list[dict[str, Any]]:
    """A recipe for a decoder whose blocks cannot all be read, or not all prune."""
    anatomy = Anatomy.of(model(family))
    last = anatomy.last_layer
    middle = max(b + 1 for b in range(min(3, last - 1)) if anatomy.attention(b) is not None)

    def stage(scorer: str, layer: int, keep: Any) -> dict[str, Any]:
        return {"scorer": scorer, "schedule": {"name": "fixed", "layer": layer, "keep": keep}}

    return {
        "single": [stage("attention", middle, 5)],
        "stages": [stage("diversity", 0, 0.6), stage("entropy", middle, 5), stage("random", last, 2)],
        "layer 0": [stage("diversity", 0, 5)],
        "nothing left": [stage("random", middle, 0)],
    }[name]


def check(family: str, attention: str, prompts: Sequence[Prompt], recipe: Any) -> None:
    """Prefill and five steps equal the reference, and pruning changed the answer."""
    lm = model(family, attention)

    def answered(prompts: Sequence[Prompt]) -> torch.Tensor:
        return logits(answer(family, attention, prompts)).transpose(0, 1)

    with tokenprune.prune(lm, {"prune": recipe}) as pruning:
        pruned, state = answered(prompts), pruning.state
    assert state is not None
    assert sorted(state.views) == sorted(state.stages)
    expected = reference(lm, lambda some: inputs(family, some), prompts, state.views, answered)
    assert close(pruned, expected)
    shown = [row for row, count in enumerate(state.counts) if count]
    assert not close(pruned[:, shown], unpruned(family, attention, tuple(prompts)).transpose(0, 1)[:, shown])


@pytest.mark.works("Models", "every family of the table in docs/families.md: prefill and decode equal masking")
@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("batch", ["one", "ragged"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", EVERY)
def test_pruning_equals_the_reference(family: str, attention: str, batch: str, recipe: str) -> None:
    check(family, attention, BATCHES[batch], plan(family, recipe))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", EVERY)
def test_keep_all_is_no_pruning(family: str, attention: str) -> None:
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}}]}
    full = logits(answer(family, attention, RAGGED))
    with tokenprune.prune(model(family, attention), recipe):
        assert torch.equal(logits(answer(family, attention, RAGGED)), full)


def windowed(family: str) -> list[int]:
    return [number for number, kind in enumerate(Anatomy.of(model(family)).kinds) if "attention" in kind]


@pytest.mark.works("Models", "windows that the prompt or its answer crosses")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("steps", [3, 14])
@pytest.mark.parametrize("family", ["gemma3", "gemma3_wide", "gemma4_small", "llama4", "paligemma2"])
def test_a_window_is_crossed(family: str, steps: int, attention: str) -> None:
    """By the prompt where it is shorter, during a long answer where it is longer."""
    lm, recipe = model(family, attention), {"prune": plan(family, "stages")}
    with tokenprune.prune(lm, recipe) as pruning:
        pruned = logits(answer(family, attention, RAGGED, steps))
    assert pruning.state is not None
    with hidden_by_mask(lm, inputs(family, RAGGED)["attention_mask"], pruning.state.views):
        assert close(pruned, logits(answer(family, attention, RAGGED, steps)))


MUTANTS = ["a causal mask", "additions dropped", "tables of another type", "inputs of other columns"]
FOUND_BY = {
    "a causal mask": "gemma3",
    "additions dropped": "qwen3_vl",
    "tables of another type": "gemma3_wide",
    "inputs of other columns": "gemma4_small",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_can_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal mask instead of the model's own, rows that are not added, RoPE of another kind, rows of others."""
    from tokenprune.decoder import additions, visibility

    family = FOUND_BY[mutant]
    if mutant == "a causal mask":
        followed = visibility.followed

        def causal(forward: Any, block: int, hidden: Any, own: Any) -> Any:
            made = followed(forward, block, hidden, own)
            return made if made.shape[2] == 1 else torch.ones_like(made).tril()

        monkeypatch.setattr(visibility, "followed", causal)
    elif mutant == "additions dropped":
        monkeypatch.setattr(additions, "_plus", lambda forward, block, rows, hidden: hidden)
    elif mutant == "tables of another type":
        rotary, made = visibility.rotary, {}

        def one(forward: Any, block: int, kind: str, hidden: Any, kwargs: Any) -> Any:
            return made.setdefault((id(forward), block), rotary(forward, block, kind, hidden, kwargs))

        monkeypatch.setattr(visibility, "rotary", one)
    else:
        monkeypatch.setattr(visibility, "narrowed", lambda value, view: _first(value, view))
    with pytest.raises((AssertionError, RuntimeError)):
        for recipe in ("layer 0", "stages"):
            check(family, "eager", RAGGED, plan(family, recipe))


def _first(value: Any, view: Any) -> Any:
    wide = isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == view.span
    return value[:, : view.width] if wide else value


@pytest.mark.refused("Models", "attention scorers behind blocks without attention")
def test_states_that_a_linear_block_has_not_are_refused() -> None:
    recipe = {"prune": [{"scorer": "attention", "schedule": {"name": "fixed", "layer": 2, "keep": 5}}]}
    with (
        tokenprune.prune(model("qwen3_5"), recipe),
        pytest.raises(ScorerError, match=r"block 1 \(linear_attention\) has no queries.*layers 3, or use"),
    ):
        answer("qwen3_5", "sdpa", ONE)


@pytest.mark.refused("Models", "dropping tokens behind blocks whose keys later blocks read")
def test_layers_behind_shared_keys_are_refused() -> None:
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 3, "keep": 5}}]}
    with pytest.raises(LayerError, match="read those of block 2, which saw all tokens; prune at layer 2 or earlier"):
        tokenprune.attach(model("gemma4_small"), recipe)


@pytest.mark.refused("Inputs", "a static cache of a decoder with windows or linear blocks")
@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_a_static_cache_is_refused(family: str) -> None:
    with (
        tokenprune.prune(model(family), {"prune": plan(family, "layer 0")}),
        pytest.raises(PromptError, match="static cache for blocks of .* leave cache_implementation"),
    ):
        answer(family, "sdpa", ONE, cache_implementation="static")


@pytest.mark.refused("Inputs", "prompts of linear decoders that end with their picture, its last token dropped")
def test_an_answer_that_stays_in_a_state_is_refused() -> None:
    with (
        tokenprune.prune(model("qwen3_5"), {"prune": plan("qwen3_5", "nothing left")}),
        pytest.raises(PromptError, match="would stay in the states of this decoder's linear blocks"),
    ):
        answer("qwen3_5", "sdpa", [(1, (3, "image"))])


@pytest.mark.refused("Inputs", "conversations longer than a decoder counts without its cache")
def test_positions_counted_by_the_cache_are_refused() -> None:
    with (
        tokenprune.prune(model("llama4"), {"prune": plan("llama4", "layer 0")}),
        pytest.raises(PromptError, match="pruning cannot follow .* beyond 127"),
    ):
        answer("llama4", "sdpa", [(1, (120, "image", 9))])


@pytest.mark.works("Generation", "beam search in decoders with windows, states and two-way pictures")
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "gemma3", "gemma4_large", "internvl"])
def test_beams(family: str) -> None:
    """A batch in beams answers as each prompt alone does."""
    with tokenprune.prune(model(family), {"prune": plan(family, "stages")}):
        together = answer(family, "sdpa", RAGGED, num_beams=3).sequences[:, -6:]
        alone = [answer(family, "sdpa", [prompt], num_beams=3).sequences[0, -6:] for prompt in RAGGED]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.works("Training", "LoRA on decoders of other families")
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "qwen3_5"])
def test_adapted_weights(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    lm, given = copy.deepcopy(model(family)), inputs(family, RAGGED)
    tuned = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad(), tokenprune.prune(tuned, {"prune": plan(family, "stages")}) as pruning:
        found = tuned(**given).logits[:, -1]
    merged = tuned.merge_and_unload()
    with torch.no_grad(), tokenprune.prune(merged, {"prune": plan(family, "stages")}) as plain:
        expected = merged(**given).logits[:, -1]
    assert pruning.state is not None and plain.state is not None
    assert not STATES.isdisjoint(Anatomy.of(merged).kinds) or close(found, expected)
    assert close(found, expected)
