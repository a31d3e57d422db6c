"""pruning == masking, keep-all == no pruning, a prompt in a batch == the prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import BATCHES, DEPTH, FAMILIES, MIXED, RAGGED, Prompt, answer, has_video, inputs, logits, model
from masking import hidden_by_mask
from oracle import ATTENTIONS, ENDING, RECIPES, check_oracle, close, numbered_anew

import tokenprune


@pytest.mark.works("Inputs", "batches: one prompt, left-padded, ragged with unequal numbers of pictures")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_equals_masking(family: str, attention: str, batch: str, recipe: str) -> None:
    """Prefill and five decode steps, and pruning did change the answer."""
    prompts = BATCHES[batch]
    check_oracle(family, attention, prompts, {"prune": RECIPES[recipe]})


@pytest.mark.works("Inputs", "videos and pictures together")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if has_video(family)])
def test_pruning_equals_masking_with_videos(family: str, attention: str) -> None:
    check_oracle(family, attention, MIXED, {"prune": RECIPES["mixture"]})


@pytest.mark.works("Inputs", "prompts that end with their picture")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", ENDING)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_equals_masking_where_a_picture_ends_the_prompt(family: str, batch: str, recipe: str) -> None:
    """The answer is read from a visual token then, dropped or not; nobody else sees it if it was dropped."""
    prompts, attention = ENDING[batch], "sdpa" if batch == "one" else "eager"
    state = check_oracle(family, attention, prompts, {"prune": RECIPES[recipe]}).state
    assert state is not None
    assert [text == 0 for text in state.question] == [segments[-1] == "image" for _, segments in prompts]
    for stage, view in zip(state.stages.values(), state.views.values(), strict=True):
        gone = [n - kept for n, kept in zip(state.counts, stage.kept, strict=True)]
        assert list(view.lengths) == [n - few for n, few in zip(state.full_view.lengths, gone, strict=True)]
        assert view.valid.sum(1).tolist() == list(view.lengths)


@pytest.mark.works("Inputs", "positions: compact")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava"])
def test_compact_positions_equal_masking(family: str, batch: str) -> None:
    recipe = [{**RECIPES["pyramid"][0], "positions": "compact"}]
    check_oracle(family, "sdpa", BATCHES[batch], {"prune": recipe}, compact=True)


@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava"])
def test_compact_positions_equal_masking_where_a_picture_ends_the_prompt(family: str) -> None:
    recipe = [{**stage, "positions": "compact"} for stage in RECIPES["mixture"]]
    check_oracle(family, "sdpa", ENDING["ragged"], {"prune": recipe}, compact=True)


@pytest.mark.parametrize("prompts", [RAGGED, ENDING["ragged"]], ids=["ragged", "ending"])
@pytest.mark.parametrize("anew", [0, 1])
def test_each_pass_says_whether_positions_are_numbered_anew(anew: int, prompts: list[Prompt]) -> None:
    """Those that a pass leaves alone stay as the passes before it left them."""
    recipe = [*RECIPES["mixture"]]
    recipe[anew] = {**recipe[anew], "positions": "compact"}
    pruning = check_oracle("llava", "sdpa", prompts, {"prune": recipe}, compact=True)
    assert pruning.state is not None
    assert len(numbered_anew(pruning.state)) < len(pruning.state.views)


def test_compact_keeps_mrope_positions() -> None:
    recipe = [{**RECIPES["pyramid"][0], "positions": "compact"}]
    check_oracle("qwen2_5_vl", "sdpa", RAGGED, {"prune": recipe})


@pytest.mark.works("Generation", "a forward pass, with and without a cache")
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kept_column_of_a_forward_pass(family: str, use_cache: bool) -> None:
    """One forward pass: logits of all kept columns equal the masked ones, at the caller's columns; others are zero."""
    lm, given = model(family), inputs(family, RAGGED)
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES["mixture"]}) as pruning:
        pruned = lm(**given, use_cache=use_cache).logits
    state = pruning.state
    assert state is not None
    with torch.no_grad(), hidden_by_mask(lm, given["attention_mask"], state.views):
        masked = lm(**given, use_cache=use_cache).logits
    view = state.views[max(state.views)]
    assert pruned.shape == masked.shape
    kept = torch.zeros_like(state.visual)
    for row in range(len(kept)):
        kept[row, view.index[row][view.valid[row]]] = True
    assert close(pruned[kept], masked[kept])
    assert not pruned[~kept].any()


@pytest.mark.parametrize("mutant", ["mask", "positions", "columns"])
def test_the_oracle_can_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong mask, wrong positions or wrong columns in the engine is found by the ragged batch."""
    from tokenprune import ops
    from tokenprune.decoder import masks, positions

    if mutant == "mask":
        followed = masks.followed
        monkeypatch.setattr(masks, "followed", lambda *given: torch.ones_like(followed(*given)).tril())
    elif mutant == "positions":
        monkeypatch.setattr(positions, "rotary", lambda *given: (None, _first(*given[-2:])))
    else:
        gather = ops.gather_columns
        monkeypatch.setattr(ops, "gather_columns", lambda states, index: gather(states, index.roll(1, dims=1)))
    with pytest.raises(AssertionError):
        check_oracle("llava", "sdpa", RAGGED, {"prune": RECIPES["entropy"]})


def _first(hidden: torch.Tensor, kwargs: dict[str, Any]) -> Any:
    return tuple(table[:, : hidden.shape[1]] for table in kwargs["position_embeddings"])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_keep_all_is_no_pruning(family: str, attention: str, batch: str) -> None:
    recipe = {
        "prune": [
            {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}},
            {"scorer": "diversity", "schedule": {"name": "fixed", "layer": 3, "keep": 100000}},
        ]
    }
    full = answer(family, attention, BATCHES[batch])
    with tokenprune.prune(model(family, attention), recipe) as pruning:
        kept = answer(family, attention, BATCHES[batch])
    assert torch.equal(kept.sequences, full.sequences)
    assert torch.equal(logits(kept), logits(full))
    assert pruning.report().stages == []


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_a_batch_answers_as_alone(family: str, recipe: str) -> None:
    prompts = MIXED if has_video(family) else RAGGED
    with tokenprune.prune(model(family), {"prune": RECIPES[recipe]}):
        together = logits(answer(family, "sdpa", prompts))
        alone = torch.cat([logits(answer(family, "sdpa", [prompt])) for prompt in prompts])
    assert close(together, alone)
    assert not close(together[:-1], together[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_permuting_a_batch_permutes_the_answers(family: str) -> None:
    with tokenprune.prune(model(family), {"prune": RECIPES["mixture"]}):
        straight = logits(answer(family, "sdpa", RAGGED))
        turned = logits(answer(family, "sdpa", [RAGGED[2], RAGGED[0], RAGGED[1]]))
    assert close(turned, straight[[2, 0, 1]])


def test_layers_count_blocks_that_saw_everything() -> None:
    """With `layer: L` the cache of the first L blocks holds every column, the rest what was kept."""
    lm, given = model("llava"), inputs("llava", BATCHES["one"])
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES["entropy"]}):
        cache = lm(**given).past_key_values
    s = given["input_ids"].shape[1]
    assert [layer.keys.shape[-2] for layer in cache.layers] == [s, s] + [s - 16 + 5] * (DEPTH - 2)
