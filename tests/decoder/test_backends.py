"""Attention backends, precisions and decoding modes: pruned answers equal those of sdpa, float32, greedy."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from fake_flash import fake_flash
from families import BATCHES, FAMILIES, ONE, PADDED, RAGGED, answer, forget, inputs, logits, model
from oracle import RECIPES, close

import tokenprune

STAGED = ("attention", "diversity", "pyramid", "mixture")


@pytest.mark.works("Attention", "flash_attention_2 (CPU stand-in)")
@pytest.mark.parametrize("recipe", STAGED)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_equals_sdpa(family: str, batch: str, recipe: str) -> None:
    """Prefill and decode; with one prompt flash takes its plain function: gaps are not read as packed sequences."""
    lm, prompts = model(family), BATCHES[batch]
    with tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        expected = logits(answer(family, "sdpa", prompts))
        with fake_flash(lm) as calls:
            found = logits(answer(family, "sdpa", prompts))
        assert pruning.report().stages
    assert close(found, expected)
    assert set(calls) == ({"plain"} if batch == "one" else {"varlen"})


def test_the_stand_in_sees_gapped_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof that the test above can fail: positions with gaps, handed to the blocks, take the packed path."""
    from tokenprune.decoder import forward

    before = forward.before_block

    def leaky(made: Any, block: int, hidden: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        positions = kwargs["position_ids"]
        changed = before(made, block, hidden, args, kwargs)
        if changed is None:
            return None
        index = made.prompt.view_at(block).index
        gapped = positions.expand(len(index), -1).gather(1, index) if positions.shape[1] > 1 else positions
        return changed[0], {**changed[1], "position_ids": gapped}

    monkeypatch.setattr(forward, "before_block", leaky)
    lm = model("llava")
    with tokenprune.prune(lm, {"prune": RECIPES["attention"]}), fake_flash(lm) as calls:
        answer("llava", "sdpa", ONE)
    assert "varlen" in calls


@pytest.mark.works("Attention", "flex_attention (without compiling its kernel; Qwen2.5-VL has none)")
@pytest.mark.parametrize("recipe", STAGED)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2_5_vl"])
def test_flex_attention_equals_sdpa(family: str, batch: str, recipe: str) -> None:
    lm, prompts = model(family), BATCHES[batch]
    decoder = lm.model.language_model
    with tokenprune.prune(lm, {"prune": RECIPES[recipe]}):
        expected = logits(answer(family, "sdpa", prompts))
        try:
            decoder.set_attn_implementation("flex_attention")
            with torch.compiler.set_stance("force_eager"):
                found = logits(answer(family, "sdpa", prompts))
        finally:
            decoder.set_attn_implementation("sdpa")
    assert close(found, expected)


@pytest.mark.works("Precision and training", "bfloat16 and float16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_runs_and_stays_near(family: str, dtype: torch.dtype) -> None:
    """Same tokens kept (random choice), logits within the precision's error of float32."""
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 6}}]}
    lm = model(family)
    with tokenprune.prune(lm, recipe):
        expected = logits(answer(family, "sdpa", RAGGED, steps=1))
    try:
        lm.to(dtype)
        with tokenprune.prune(lm, recipe):
            found = logits(answer(family, "sdpa", RAGGED, steps=1))
    finally:
        lm.to(torch.float32)
    forget()  # rounding to 16 bits and back is lossy: other tests get a fresh model
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_scorer_takes_half_precision(recipe: str, dtype: torch.dtype) -> None:
    lm = model("qwen2_5_vl")
    with tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning, torch.autocast("cpu", dtype):
        found = logits(answer("qwen2_5_vl", "sdpa", RAGGED, steps=2))
    assert found.isfinite().all()
    assert pruning.report().stages


@pytest.mark.works("Generation", "`labels=`")
def test_labels_give_the_loss_of_the_kept_columns() -> None:
    """Outputs keep the caller's length, so `labels=` works; text columns have the logits of the masked model."""
    lm, given = model("llava"), inputs("llava", PADDED)
    labels = given["input_ids"].masked_fill((given["input_ids"] == 5) | (given["attention_mask"] == 0), -100)
    labels[:, :-3] = -100
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES["mixture"]}):
        out = lm(**given, labels=labels)
    picked = out.logits[:, -4:-1].reshape(-1, out.logits.shape[-1])
    assert torch.allclose(out.loss, torch.nn.functional.cross_entropy(picked, labels[:, -3:].reshape(-1)))


LOOKUP = [(12, (3, "image", 9))]  # nothing here makes the look-up propose a picture's placeholder, which no model takes


@pytest.mark.works("Generation", "prompt look-up decoding")
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_lookup_decoding_equals_greedy(family: str) -> None:
    """Assisted decoding checks several tokens at once and crops the cache: the same tokens come out."""
    with tokenprune.prune(model(family), {"prune": RECIPES["mixture"]}):
        greedy = answer(family, "sdpa", LOOKUP, steps=12).sequences
        assisted = answer(family, "sdpa", LOOKUP, steps=12, prompt_lookup_num_tokens=3).sequences
    assert torch.equal(assisted, greedy)


@pytest.mark.works("Conversations", "two threads on one model")
def test_two_threads_on_one_model() -> None:
    """Each conversation gives what it gives alone."""
    batches = {"a": ONE, "b": RAGGED}
    found: dict[str, torch.Tensor] = {}
    with tokenprune.prune(model("llava"), {"prune": RECIPES["mixture"]}):
        expected = {name: logits(answer("llava", "sdpa", batch)) for name, batch in batches.items()}

        def run(name: str) -> None:
            for _ in range(4):
                found[name] = logits(answer("llava", "sdpa", batches[name]))

        threads = [threading.Thread(target=run, args=(name,)) for name in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in batches:
        assert close(found[name], expected[name])


@pytest.mark.works("Ecosystem", "`save_pretrained` inside the block")
def test_saving_inside_the_block_writes_an_untouched_model(tmp_path: Any) -> None:
    lm = model("llava")
    lm.save_pretrained(tmp_path / "plain")
    with tokenprune.prune(lm, {"prune": RECIPES["mixture"]}):
        answer("llava", "sdpa", ONE)
        lm.save_pretrained(tmp_path / "inside")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "inside").iterdir()} == names
    for name in names:
        assert (tmp_path / "inside" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.works("Generation", "`use_cache=False`")
def test_use_cache_false_generates_too() -> None:
    """Without a cache every step is a prefill: it prunes again, and nothing is kept in between."""
    recipe = {"prune": [{"scorer": "diversity", "schedule": {"name": "fixed", "layer": 2, "keep": 5}}]}
    with tokenprune.prune(model("llava"), recipe):
        cached = answer("llava", "sdpa", ONE).sequences
        fresh = answer("llava", "sdpa", ONE, use_cache=False).sequences
    assert torch.equal(cached, fresh)
