"""Every family that has a file: the oracle, what its blocks see, later turns, beams; each right or refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_flash import fake_flash
from families import BATCHES, EVERY, ONE, RAGGED, Prompt, answer, inputs, logits, model
from masking import hidden_by_mask
from oracle import ATTENTIONS, close, unpruned
from talks import FIRST, SECOND, Masked, Talk
from transformers import DynamicCache

import tokenprune
from tokenprune.contract.reference import reference
from tokenprune.errors import LayerError, PromptError, ScorerError
from tokenprune.model.anatomy import Anatomy

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
@pytest.mark.parametrize(
    ("attention", "batch"),
    [("sdpa", "ragged"), ("eager", "ragged"), ("sdpa", "one"), pytest.param("eager", "one", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("family", EVERY)
def test_pruning_equals_the_reference(family: str, attention: str, batch: str, recipe: str) -> None:
    check(family, attention, BATCHES[batch], plan(family, recipe))


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EVERY)
def test_keep_all_is_no_pruning(family: str, attention: str) -> None:
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}}]}
    full = logits(answer(family, attention, RAGGED))
    with tokenprune.prune(model(family, attention), recipe):
        assert torch.equal(logits(answer(family, attention, RAGGED)), full)


@pytest.mark.works("Models", "windows that the prompt or its answer crosses")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["gemma3", "gemma3_wide", "gemma4_small", "llama4", "paligemma2"])
def test_a_window_is_crossed(family: str, attention: str) -> None:
    """By the prompt where it is shorter, during the answer where it is longer."""
    lm, recipe, steps = model(family, attention), {"prune": plan(family, "stages")}, 14
    text, width = lm.config.get_text_config(), inputs(family, RAGGED)["input_ids"].shape[1]
    window = getattr(text, "sliding_window", None) or text.attention_chunk_size
    assert width < window < width + steps if family == "gemma3_wide" else window < width
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
    from tokenprune.decoder import additions, masks, positions

    family = FOUND_BY[mutant]
    if mutant == "a causal mask":
        followed = masks.followed

        def causal(forward: Any, block: int, hidden: Any, own: Any) -> Any:
            made = followed(forward, block, hidden, own)
            return made if made.shape[2] == 1 else torch.ones_like(made).tril()

        monkeypatch.setattr(masks, "followed", causal)
    elif mutant == "additions dropped":
        monkeypatch.setattr(additions, "_plus", lambda forward, block, rows, hidden: hidden)
    elif mutant == "tables of another type":
        rotary, made = positions.rotary, {}

        def one(forward: Any, block: int, kind: str, hidden: Any, kwargs: Any) -> Any:
            seen = id(forward), forward.prompt.view_layers(block)
            return made.setdefault(seen, rotary(forward, block, kind, hidden, kwargs))

        monkeypatch.setattr(positions, "rotary", one)
    else:
        monkeypatch.setattr(positions, "narrowed", lambda value, view: _first(value, view))
    recipe = "stages" if mutant == "tables of another type" else "layer 0"
    with pytest.raises((AssertionError, RuntimeError)):
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
        pytest.raises(PromptError, match=r"static cache for blocks of .* leave cache_implementation"),
    ):
        answer(family, "sdpa", ONE, cache_implementation="static")


@pytest.mark.refused("Attention", "flash attention in decoders with windows, beyond these")
@pytest.mark.parametrize(("family", "steps"), [("gemma3", 1), ("gemma3_wide", 25), ("gemma4_small", 1)])
@pytest.mark.parametrize("batch", ["one", "ragged"])
def test_windows_that_flash_attention_would_slide_are_refused(family: str, steps: int, batch: str) -> None:
    """With and without padding, where it gets a mask and where it gets none; by the prompt or during the answer."""
    lm = model(family)
    with (
        tokenprune.prune(lm, {"prune": plan(family, "layer 0")}),
        fake_flash(lm),
        pytest.raises(PromptError, match=r"columns exceed a window of .* would slide over dropped tokens"),
    ):
        answer(family, "sdpa", BATCHES[batch], steps)


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
        pytest.raises(PromptError, match=r"pruning cannot follow .* beyond 127"),
    ):
        answer("llama4", "sdpa", [(1, (120, "image", 9))])


@pytest.mark.works("Conversations", "pictures in later turns of decoders with windows, two-way pictures, deepstack")
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "gemma3", "gemma3_wide", "gemma4_small", "llama4"])
def test_pictures_in_later_turns(family: str) -> None:
    """Each turn is pruned, and masked on the unpruned model with the masks that it makes by itself."""
    states: list[Any] = []
    with tokenprune.prune(model(family), {"prune": plan(family, "stages")}) as pruning:
        talk, pruned = Talk(family), []
        for prompts in (FIRST, SECOND):
            pruned.append(talk.turn(prompts))
            states.append(pruning.state)
            pruned.append(talk.say(torch.full((3, 1), 17)))
    assert states[1].start == states[0].end + 1
    masked, full = Masked(family, states), Talk(family)
    for number, prompts in enumerate((FIRST, SECOND)):
        assert close(pruned[2 * number], masked.turn(prompts)), number
        assert close(pruned[2 * number + 1], masked.say(torch.full((3, 1), 17))), number
        full.turn(prompts)
        last = full.say(torch.full((3, 1), 17))
    assert not close(pruned[-1], last)


def in_turns(family: str, turns: Sequence[Sequence[Prompt]]) -> list[torch.Tensor]:
    """Conversations of prompts as long as each other, a word of answer after each turn; logits of every pass."""
    rows = len(turns[0])
    lm, found, mask = model(family), [], torch.zeros(rows, 0, dtype=torch.long)
    cache = DynamicCache(config=lm.config.get_text_config())
    for turn in turns:
        for given in (inputs(family, turn), {"input_ids": torch.full((rows, 1), 17)}):
            ids = given.pop("input_ids")
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            more = {**given, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1)[:, -ids.shape[1] :]}
            with torch.no_grad():
                found.append(lm(input_ids=ids, past_key_values=cache, **more).logits[:, -1])
    return found


@pytest.mark.works("Conversations", "later turns of linear decoders, one prompt at a time or all keeping equally many")
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_later_turns_of_a_decoder_with_states(family: str) -> None:
    """As if the dropped tokens of both turns had never been said to the blocks behind the stage."""
    turns = [[FIRST[2]], [SECOND[0]]]
    states: list[Any] = []
    with tokenprune.prune(model(family), {"prune": plan(family, "layer 0")}) as pruning:
        handle = Anatomy.of(model(family)).decoder.register_forward_hook(lambda *_: states.append(pruning.state))
        try:
            pruned = in_turns(family, turns)
        finally:
            handle.remove()
    assert [state.start for state in (states[0], states[2])] == [0, states[0].end + 1]
    expected = without(family, turns, [states[0].views[0].index[0], states[2].views[0].index[0]])
    for number, (a, b) in enumerate(zip(pruned, expected, strict=True)):
        assert close(a, b), number
    assert not close(pruned[-1], in_turns(family, turns)[-1])


def without(family: str, turns: Sequence[Sequence[Prompt]], kept: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same conversation on the unpruned model, whose decoder never gets the rows that are not kept."""
    decoder, at = Anatomy.of(model(family)).decoder, iter([kept[0], None, kept[1], None])

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        rows = next(at)
        if rows is None:
            rows = slice(None)
        positions = kwargs["position_ids"][..., rows]
        return args, {
            **kwargs,
            "inputs_embeds": kwargs["inputs_embeds"][:, rows],
            "position_ids": positions,
            "attention_mask": None,
        }

    handle = decoder.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        return in_turns(family, turns)
    finally:
        handle.remove()


def test_later_turns_of_prompts_that_keep_equally_many() -> None:
    """In a batch as alone."""
    turns = [[(1, (3, "image", 4)), (4, (3, "image", 4))], [(2, (5, "image", 2)), (5, (5, "image", 2))]]
    with tokenprune.prune(model("qwen3_5"), {"prune": plan("qwen3_5", "stages")}):
        together = in_turns("qwen3_5", turns)
        for row in (0, 1):
            alone = in_turns("qwen3_5", [[turn[row]] for turn in turns])
            assert all(close(a[row : row + 1], b) for a, b in zip(together, alone, strict=True))
    assert not close(together[-1][0], together[-1][1])


@pytest.mark.refused("Conversations", "later turns of linear decoders in batches that keep different numbers")
def test_padding_between_turns_of_states_is_refused() -> None:
    with tokenprune.prune(model("qwen3_5"), {"prune": plan("qwen3_5", "stages")}):
        talk = Talk("qwen3_5")
        talk.turn(FIRST)
        with pytest.raises(PromptError, match="later turn keep different numbers of tokens"):
            talk.turn(SECOND)


@pytest.mark.works("Generation", "beam search in decoders with windows, states and two-way pictures")
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "gemma3", "gemma4_large", "internvl"])
def test_beams(family: str) -> None:
    """A batch in beams answers as each prompt alone does."""
    with tokenprune.prune(model(family), {"prune": plan(family, "stages")}):
        together = answer(family, "sdpa", RAGGED, num_beams=3).sequences[:, -6:]
        alone = [answer(family, "sdpa", [prompt], num_beams=3).sequences[0, -6:] for prompt in RAGGED]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.works("Generation", "static caches of decoders that see all columns in all blocks")
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "glm4v", "mistral3"])
def test_static_caches(family: str) -> None:
    with tokenprune.prune(model(family), {"prune": plan(family, "stages")}):
        found = logits(answer(family, "sdpa", RAGGED, cache_implementation="static"))
        expected = logits(answer(family, "sdpa", RAGGED))
    assert close(found, expected)


@pytest.mark.works("Training", "LoRA on decoders of other families")
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "qwen3_5"])
def test_adapted_weights(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    lm, given = copy.deepcopy(model(family)), inputs(family, RAGGED)
    tuned = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad(), tokenprune.prune(tuned, {"prune": plan(family, "stages")}):
        found = tuned(**given).logits[:, -1]
    merged = tuned.merge_and_unload()
    with torch.no_grad(), tokenprune.prune(merged, {"prune": plan(family, "stages")}):
        expected = merged(**given).logits[:, -1]
    assert close(found, expected)
