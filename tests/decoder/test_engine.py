"""The engine in real use: generation modes, conversations, several models, faults; and it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from families import BATCHES, FAMILIES, ONE, PADDED, RAGGED, answer, inputs, logits, model
from modules import attributes
from oracle import RECIPES, close
from transformers import DynamicCache, TextIteratorStreamer

import tokenprune
from tokenprune.errors import AlreadyPrunedError, LayerError, PromptError, ScorerError, UnsupportedModelError
from tokenprune.parts.scorer import VisionScorer
from tokenprune.seen.pictures import Pictures, Ranking

MIXTURE = {"prune": RECIPES["mixture"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_stays_on_the_model(family: str) -> None:
    lm = model(family)
    answer(family, "sdpa", ONE)  # transformers installs its own output hooks on the first pass
    before = attributes(lm)
    with tokenprune.prune(lm, MIXTURE):
        answer(family, "sdpa", ONE)
        assert attributes(lm) != before
    after = attributes(lm)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in changed if not name.endswith("rope_deltas")}  # Qwen's own, set at every prefill


@pytest.mark.refused("Models", "a pruning block inside another")
def test_nested_pruning_is_refused() -> None:
    lm = model("llava")
    with tokenprune.prune(lm, MIXTURE), pytest.raises(AlreadyPrunedError, match="already being pruned"):
        tokenprune.attach(lm, "random")
    handle = tokenprune.attach(lm, MIXTURE)  # the first block is gone: this works
    with pytest.raises(AlreadyPrunedError), tokenprune.prune(lm, "random"):
        pass
    handle.remove()
    handle.remove()
    with tokenprune.prune(lm, MIXTURE):
        pass


def test_attach_is_the_lasting_form_of_prune() -> None:
    with tokenprune.prune(model("llava"), MIXTURE):
        expected = logits(answer("llava", "sdpa", PADDED))
    handle = tokenprune.attach(model("llava"), MIXTURE)
    try:
        assert torch.equal(logits(answer("llava", "sdpa", PADDED)), expected)
        assert handle.report().stages
    finally:
        handle.remove()
    assert not close(logits(answer("llava", "sdpa", PADDED)), expected)


@pytest.mark.refused("Models", "a family without an adapter")
def test_an_unsupported_family_lists_the_supported_ones() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    lm = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    with pytest.raises(UnsupportedModelError, match=r"'llama'.*llava.*qwen2_5_vl.*add-a-family"):
        tokenprune.prune(lm, "random")


@pytest.mark.refused("Models", "decoders that attend in both directions")
@pytest.mark.parametrize("where", ["config", "config, later", "call"])
def test_a_decoder_that_is_not_causal_is_refused(where: str) -> None:
    """Nothing says what such a decoder's missing masks mean; text alone is left to the model."""
    lm, given = copy.deepcopy(model("llava")), inputs("llava", ONE)
    decoder, more = lm.model.language_model, {"is_causal": False} if where == "call" else {}
    if where == "config":
        decoder.config.is_causal = False
        with pytest.raises(UnsupportedModelError, match="attends in both directions"):
            tokenprune.attach(lm, MIXTURE)
        return
    with torch.no_grad(), tokenprune.prune(lm, MIXTURE):
        if where == "config, later":
            decoder.config.is_causal = False
        with pytest.raises(PromptError, match="attends in both directions"):
            lm(**given, **more)
        lm(**inputs("llava", [(9, (6,))]), **more)


def test_a_layer_beyond_the_depth_is_refused_on_entering() -> None:
    with (
        pytest.raises(LayerError, match="6 blocks"),
        tokenprune.prune(model("llava"), "entropy-at-5", "prune.0.schedule.layer=6"),
    ):
        pass


def test_entropy_needs_a_block_that_ran() -> None:
    with (
        pytest.raises(ScorerError, match="at layer 0 there is no previous block"),
        tokenprune.prune(model("llava"), "entropy-at-5", "prune.0.schedule.layer=0"),
    ):
        answer("llava", "sdpa", ONE)


@pytest.mark.works("Inputs", "`inputs_embeds` with the pictures beside them")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_are_found_in_inputs_embeds(family: str, batch: str) -> None:
    """Embeddings with the pictures beside them answer as token ids do, in a forward pass and in generate."""
    lm, given = model(family), inputs(family, BATCHES[batch])
    embedded = {**given, "inputs_embeds": lm.get_input_embeddings()(given["input_ids"])}
    embedded.pop("input_ids")
    same = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES["pyramid"]}) as pruning:
        expected, first = lm(**given).logits[:, -1], pruning.state
        found, second = lm(**embedded).logits[:, -1], pruning.state
        assert second is not first
        assert torch.equal(second.visual, first.visual)
        if family != "qwen2_5_vl":  # without ids it counts positions as if all was text, pruned or not
            assert close(found, expected)
            answers = lm.generate(**given, **same)[:, -4:]
            assert torch.equal(lm.generate(**embedded, **same)[:, -4:], answers)
    assert not close(found, lm(**embedded).logits[:, -1])


@pytest.mark.refused("Inputs", "`inputs_embeds` that hold the pictures already")
def test_embeddings_that_hold_pictures_already_are_refused() -> None:
    lm, embeds = model("llava"), torch.randn(1, 30, 64)
    with tokenprune.prune(lm, MIXTURE), pytest.raises(PromptError, match="embedding of a placeholder; pass input_ids"):
        lm(inputs_embeds=embeds)


@dataclass(frozen=True)
class Leading(VisionScorer):
    """Keeps the first tokens of a picture, or its last."""

    last: bool = False

    def rank(self, pictures: Pictures) -> Ranking:
        return Ranking(pictures.tokens.float() * (1 if self.last else -1))


@pytest.mark.refused("Inside the vision tower", "dropping the last token of a prompt that ends with its picture")
@pytest.mark.parametrize("last", [False, True])
def test_a_tower_that_drops_what_answers_is_refused(last: bool) -> None:
    step = {"tower": "vision", "scorer": Leading(last), "schedule": {"name": "fixed", "layer": 1, "keep": 0.5}}
    lm = model("llava")
    refused = pytest.raises(PromptError, match="dropped the last of its tokens, from which the answer is read")
    with torch.no_grad(), tokenprune.prune(lm, {"prune": [step]}):
        with nullcontext() if last else refused:
            assert lm(**inputs("llava", [(1, (3, "image"))])).logits[:, -1].any()
        assert lm(**inputs("llava", ONE)).logits[:, -1].any()


@pytest.mark.works("Generation", "beam search")
@pytest.mark.parametrize("family", FAMILIES)
def test_beams(family: str) -> None:
    """Beam search in a ragged batch gives each prompt what it gives alone."""
    beams = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    with tokenprune.prune(model(family), MIXTURE):
        together = answer(family, "sdpa", RAGGED, **beams)
        alone = [answer(family, "sdpa", [prompt], **beams) for prompt in RAGGED]
    new = together.sequences[:, -6:]
    assert torch.equal(new, torch.cat([single.sequences[:, -6:] for single in alone]))
    assert torch.allclose(
        together.sequences_scores, torch.cat([single.sequences_scores for single in alone]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.works("Generation", "sampling")
@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_a_seed_repeats(family: str) -> None:
    def sample() -> Any:
        torch.manual_seed(7)
        return answer(family, "sdpa", PADDED, do_sample=True, temperature=1.5)

    with tokenprune.prune(model(family), MIXTURE):
        assert torch.equal(sample().sequences, sample().sequences)


class Words:
    """A tokenizer as far as a streamer needs one."""

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(str(int(i)) for i in ids) + " "


def test_streaming_gives_the_same_tokens() -> None:
    lm = model("llava")
    streamer = TextIteratorStreamer(Words(), skip_prompt=True)  # type: ignore[arg-type]
    with tokenprune.prune(lm, MIXTURE):
        whole = answer("llava", "sdpa", ONE).sequences[0, -6:].tolist()
        answer("llava", "sdpa", ONE, streamer=streamer)
    assert "".join(streamer).split() == [str(token) for token in whole]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_after_one_another(family: str) -> None:
    """A second picture, a prompt without one, and the first again: nothing leaks from one to the next."""
    text_only = [(9, (6,))]
    plain_text = logits(answer(family, "sdpa", text_only))
    with tokenprune.prune(model(family), MIXTURE) as pruning:
        first = logits(answer(family, "sdpa", ONE))
        answer(family, "sdpa", [(8, (2, "image", 3))])
        assert torch.equal(logits(answer(family, "sdpa", text_only)), plain_text)
        assert torch.equal(logits(answer(family, "sdpa", ONE)), first)
        assert pruning.report().stages[-1].kept == [2]


@pytest.mark.works("Models", "two models at once")
def test_two_models_at_once() -> None:
    alone = {}
    for family in ("llava", "qwen2_5_vl"):
        with tokenprune.prune(model(family), MIXTURE):
            alone[family] = logits(answer(family, "sdpa", RAGGED))
    with tokenprune.prune(model("llava"), MIXTURE), tokenprune.prune(model("qwen2_5_vl"), MIXTURE):
        for family in ("qwen2_5_vl", "llava", "qwen2_5_vl"):
            assert torch.equal(logits(answer(family, "sdpa", RAGGED)), alone[family])


def decode_by_hand(family: str, cache: Any, token: torch.Tensor, steps: int, mask: torch.Tensor | None) -> torch.Tensor:
    """A loop that passes only new ids and the cache, as many do; b x steps x vocab."""
    found = []
    for _ in range(steps):
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
        out = model(family)(input_ids=token, past_key_values=cache, attention_mask=mask, use_cache=True)
        found.append(out.logits[:, -1])
        token = out.logits[:, -1:].argmax(-1)
    return torch.stack(found, dim=1)


@pytest.mark.works("Generation", "a hand-written decode loop")
@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava", "qwen2_5_vl"])
def test_a_hand_written_loop_equals_generate(family: str) -> None:
    """Also when layer 0 is pruned: the cache reports its logical length, so positions go on where they should."""
    lm, given = model(family), inputs(family, ONE)
    mask = given.pop("attention_mask")
    with torch.no_grad(), tokenprune.prune(lm, MIXTURE):
        expected = answer(family, "sdpa", ONE, steps=6)
        cache = DynamicCache(config=lm.config.get_text_config())
        first = lm(**given, past_key_values=cache, use_cache=True).logits[:, -1:]
        assert cache.get_seq_length() == given["input_ids"].shape[1]
        by_hand = decode_by_hand(family, cache, first.argmax(-1), 5, None)
    assert mask.all()
    assert close(by_hand, logits(expected)[:, 1:])


@pytest.mark.works("Conversations", "interleaved and deep-copied conversations")
def test_interleaved_and_copied_conversations() -> None:
    """The state belongs to its cache: two conversations on one model, and a copied cache, go on as if alone."""
    lm = model("llava")
    with torch.no_grad(), tokenprune.prune(lm, MIXTURE):
        prompts = {"a": RAGGED, "b": PADDED}
        expected = {name: logits(answer("llava", "sdpa", batch)) for name, batch in prompts.items()}
        caches, tokens, masks = {}, {}, {}
        for name, batch in prompts.items():
            given = inputs("llava", batch)
            positions = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
            caches[name] = DynamicCache(config=lm.config.get_text_config())
            out = lm(**given, position_ids=positions, past_key_values=caches[name], use_cache=True)
            tokens[name], masks[name] = out.logits[:, -1:].argmax(-1), given["attention_mask"]
        copied = copy.deepcopy(caches["a"])
        for _ in range(2):
            for name in prompts:
                masks[name] = torch.nn.functional.pad(masks[name], (0, 1), value=1)
                position = masks[name].sum(1, keepdim=True) - 1
                out = lm(
                    input_ids=tokens[name],
                    past_key_values=caches[name],
                    attention_mask=masks[name],
                    position_ids=position,
                )
                step = caches[name].get_seq_length() - inputs("llava", prompts[name])["input_ids"].shape[1]
                assert close(out.logits[:, -1], expected[name][:, step])
                tokens[name] = out.logits[:, -1:].argmax(-1)
        mask = torch.nn.functional.pad(inputs("llava", RAGGED)["attention_mask"], (0, 1), value=1)
        token = expected["a"][:, :1].argmax(-1)
        out = lm(
            input_ids=token, past_key_values=copied, attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1
        )
        assert close(out.logits[:, -1], expected["a"][:, 1])


@pytest.mark.works("Conversations", "later turns of text")
@pytest.mark.parametrize("layers", [(0,), (2,)])
def test_a_follow_up_turn_on_a_pruned_cache(layers: tuple[int, ...]) -> None:
    """Several new tokens at once on a pruned cache equal the same tokens one by one."""
    lm, given = model("llava"), inputs("llava", PADDED)
    recipe = {"prune": [{"scorer": "diversity", "schedule": {"name": "fixed", "layer": layers[0], "keep": 4}}]}
    turn = torch.randint(10, 100, (2, 4), generator=torch.Generator().manual_seed(3))

    def start() -> tuple[Any, torch.Tensor]:
        cache = DynamicCache(config=lm.config.get_text_config())
        positions = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
        lm(**given, position_ids=positions, past_key_values=cache)
        return cache, given["attention_mask"]

    with torch.no_grad(), tokenprune.prune(lm, recipe):
        cache, mask = start()
        whole_mask = torch.nn.functional.pad(mask, (0, 4), value=1)
        positions = mask.sum(1, keepdim=True) + torch.arange(4)
        whole = lm(input_ids=turn, past_key_values=cache, attention_mask=whole_mask, position_ids=positions).logits
        cache, mask = start()
        single = []
        for i in range(4):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            position = mask.sum(1, keepdim=True) - 1
            step = lm(input_ids=turn[:, i : i + 1], past_key_values=cache, attention_mask=mask, position_ids=position)
            single.append(step.logits)
    assert close(whole, torch.cat(single, dim=1))


def test_a_dropped_cache_frees_its_state() -> None:
    with torch.no_grad(), tokenprune.prune(model("llava"), MIXTURE) as pruning:
        cache = model("llava")(**inputs("llava", ONE)).past_key_values
        first = weakref.ref(pruning.state)
        model("llava")(**inputs("llava", ONE))  # `pruning.state` now holds the second prompt
        assert first() is not None
        del cache
        gc.collect()
        assert first() is None


def test_text_alone_is_never_refused() -> None:
    """Nothing to prune, nothing to refuse: static caches and ready-made masks are the model's own business."""
    text = [(9, (6,))]
    expected = answer("llava", "sdpa", text).sequences
    lm, ids = model("llava"), inputs("llava", text)["input_ids"]
    plain = lm(input_ids=ids).logits
    with torch.no_grad(), tokenprune.prune(lm, MIXTURE):
        static = answer("llava", "sdpa", text, cache_implementation="static", disable_compile=True).sequences
        assert torch.equal(static, expected)
        s = ids.shape[1]
        assert close(lm(input_ids=ids, attention_mask=torch.ones(1, 1, s, s, dtype=torch.bool).tril()).logits, plain)


def test_projections_are_never_run_twice() -> None:
    """Scoring reads what the model computed: projection calls per block are as many as without pruning."""
    lm, calls = model("llava"), {"plain": 0, "pruned": 0}
    name = "plain"

    def count(*_: Any) -> None:
        calls[name] += 1

    handles = [
        part.register_forward_hook(count)
        for block in lm.model.language_model.layers
        for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
    ]
    try:
        answer("llava", "sdpa", ONE)
        name = "pruned"
        recipe = {
            "prune": [
                {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 8}},
                {"scorer": "attention", "schedule": {"name": "fixed", "layer": 4, "keep": 4}},
            ]
        }
        with tokenprune.prune(lm, recipe):
            answer("llava", "sdpa", ONE)
    finally:
        for handle in handles:
            handle.remove()
    assert calls["plain"] == calls["pruned"] > 0


@pytest.mark.parametrize("batch", BATCHES)
def test_the_report_says_what_happened(batch: str) -> None:
    recipe = {"prune": RECIPES["mixture"]}
    with tokenprune.prune(model("llava"), recipe) as pruning:
        assert pruning.report().stages == []
        answer("llava", "sdpa", BATCHES[batch])
    report, state = pruning.report(), pruning.state
    assert state is not None
    counts = {"one": [16], "padded": [16, 16], "ragged": [32, 0, 16]}[batch]
    assert [stage.layer for stage in report.stages] == [0, 2, 5]
    assert [stage.total for stage in report.stages] == [counts] * 3
    assert report.stages[-1].kept == [min(2, count) for count in counts]
    per_token = 2 * 2 * 16 * 4 / 2**20  # keys and values, kv heads, head size, float32
    assert report.kv_mib.full == pytest.approx(sum(counts) * 6 * per_token)
    kept = [round(0.6 * count) for count in counts]
    tokens = sum(2 * k + 3 * min(6, k) + min(2, k) for k in kept)
    assert report.kv_mib.pruned == pytest.approx(tokens * per_token)
    assert 0 < report.flops_share < 1
    assert f"{report.stages[-1].kept[0]}/{counts[0]}" in str(report)


def test_cache_memory_shrinks() -> None:
    """The visual tokens' share of the real cache is what the report says."""
    lm, given = model("llava"), inputs("llava", ONE)

    def held(cache: Any) -> int:
        return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4

    with torch.no_grad():
        full = held(lm(**given).past_key_values)
        with tokenprune.prune(lm, MIXTURE) as pruning:
            pruned = held(lm(**given).past_key_values)
    kv = pruning.report().kv_mib
    assert (full - pruned) / 2**20 == pytest.approx(kv.full - kv.pruned)
