"""Static caches, the ready-made masks that come with them, and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fake_flash import fake_flash
from families import BATCHES, FAMILIES, ONE, RAGGED, answer, inputs, logits, model
from oracle import ATTENTIONS, RECIPES, close
from talks import Talk, converse
from transformers import CompileConfig, StaticCache

import tokenprune
from tokenprune.errors import PromptError
from tokenprune.state.prompt import Prompt as PromptState

STATIC = {"cache_implementation": "static", "disable_compile": True}
PLANS: dict[str, Any] = {
    **{name: {"prune": RECIPES[name]} for name in ("attention", "diversity", "pyramid", "mixture")},
    "compact": {"prune": [{**stage, "positions": "compact"} for stage in RECIPES["mixture"]]},
}


@pytest.mark.works("Caches", "static cache")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_answers_as_a_dynamic_one(family: str, attention: str, batch: str, plan: str) -> None:
    with tokenprune.prune(model(family, attention), PLANS[plan]) as pruning:
        expected = answer(family, attention, BATCHES[batch])
        found = answer(family, attention, BATCHES[batch], **STATIC)
        assert pruning.report().stages
    assert torch.equal(found.sequences, expected.sequences)
    assert close(logits(found), logits(expected))


def test_static_columns_that_no_block_holds_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof that the test above can fail: a mask over the prompt's columns fits every static cache, and is wrong."""
    with tokenprune.prune(model("llava"), PLANS["mixture"]):
        expected = logits(answer("llava", "sdpa", RAGGED))
        monkeypatch.setattr(PromptState, "mask", lambda self, block, given, total, device: given.bool())
        assert not close(logits(answer("llava", "sdpa", RAGGED, **STATIC)), expected)


@pytest.mark.works("Caches", "static cache, pictures in later turns")
@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava"])
def test_later_pictures_in_a_static_cache(family: str) -> None:
    """Three turns with pictures each: the same answers as with a cache that grows."""
    with tokenprune.prune(model(family), PLANS["pyramid"]):
        expected = converse(Talk(family))
        room = StaticCache(config=model(family).config.get_text_config(), max_cache_len=512)
        found = converse(Talk(family, room))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert close(a, b), i


@pytest.mark.refused("Caches", "static cache with flash attention")
def test_flash_attention_with_a_static_cache_is_refused() -> None:
    """Unpruned it is wrong already: without a mask, flash attention reads columns that nobody wrote."""
    lm = model("llava")
    expected = logits(answer("llava", "sdpa", ONE))
    with fake_flash(lm):
        assert not close(logits(answer("llava", "sdpa", ONE, **STATIC)), expected)
        with tokenprune.prune(lm, PLANS["mixture"]), pytest.raises(PromptError, match="empty columns of a static"):
            answer("llava", "sdpa", ONE, **STATIC)


@pytest.mark.works("Inputs", "4-D causal masks")
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_ready_made_causal_mask_counts_as_the_2d_one(batch: str, kind: str) -> None:
    lm, given = model("llava"), inputs("llava", BATCHES[batch])
    valid = given["attention_mask"].bool()
    allowed = valid[:, None, None] & torch.ones(valid.shape[1], valid.shape[1]).tril().bool()
    ready = allowed if kind == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo().min)
    with torch.no_grad(), tokenprune.prune(lm, PLANS["mixture"]):
        expected = lm(**given, position_ids=(valid.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
        given["attention_mask"] = ready
        found = lm(**given, position_ids=(valid.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
    assert close(found, expected)


@pytest.mark.refused("Inputs", "masks that are not causal")
def test_a_mask_of_another_shape_is_refused() -> None:
    """Both ways, in blocks, by head: pruning would have to guess what dropped columns meant in it."""
    lm, given = model("llava"), inputs("llava", ONE)
    s = given["input_ids"].shape[1]
    causal = torch.ones(1, 1, s, s).tril().bool()
    window = causal.triu(-5)
    with torch.no_grad(), tokenprune.prune(lm, PLANS["mixture"]):
        added = torch.zeros(1, 1, s, s).masked_fill(~causal, torch.finfo().min)
        bias, boost = added.clone(), added.clone()
        bias[..., 1], boost[..., 1] = bias[..., 1] - 0.5, boost[..., 1] + 0.5  # more than hiding
        for mask in (torch.ones_like(causal), window, causal.expand(1, 4, s, s), causal[0], bias, boost):
            with pytest.raises(PromptError, match="2-D attention mask"):
                lm(**{**given, "attention_mask": mask})


def compiled(family: str, batch: Any, extra: int = 0, steps: int = 5, fullgraph: bool = False) -> Any:
    """Decode steps run in code of torch.compile; `extra` more text tokens make another prompt length."""
    # dynamo as it is, without the wait for a C++ compiler
    config = CompileConfig(backend="eager", mode="default", fullgraph=fullgraph)
    config._compile_all_devices = True
    prompts = [(seed, (*parts, extra)) for seed, parts in (BATCHES[batch] if isinstance(batch, str) else batch)]
    static = {"cache_implementation": "static", "max_cache_len": 160}
    return (
        logits(answer(family, "sdpa", prompts, steps, **static, compile_config=config)),
        logits(answer(family, "sdpa", prompts, steps)),
    )


@pytest.fixture(autouse=True)
def nothing_compiled() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.works("Caches", "decode steps in torch.compile, without recompilation")
@pytest.mark.parametrize(
    ("family", "batch", "plan"),
    [
        *((family, "ragged", "mixture") for family in FAMILIES),
        ("llava", "one", "attention"),
        ("llava", "ragged", "compact"),
    ],
)
def test_compiled_decode_is_right_and_compiled_once(family: str, batch: str, plan: str) -> None:
    """After two prompts: no recompilation, neither by step nor by the length of a prompt."""
    with tokenprune.prune(model(family), PLANS[plan]):
        for extra in (1, 2):
            assert close(*compiled(family, batch, extra))
        with torch.compiler.set_stance("fail_on_recompile"):
            for extra in (3, 4, 5):
                assert close(*compiled(family, batch, extra))


@pytest.mark.works("Caches", "decode steps in one graph (`CompileConfig(fullgraph=True)`)")
@pytest.mark.parametrize(
    ("family", "plan"), [*((family, "mixture") for family in FAMILIES), ("llava", "compact"), ("llava", "diversity")]
)
def test_compiled_decode_in_one_graph(family: str, plan: str) -> None:
    """With pictures and without, and compiled once for prompts of all lengths."""
    with tokenprune.prune(model(family), PLANS[plan]):
        for extra in (1, 2):
            assert close(*compiled(family, "ragged", extra, fullgraph=True))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert close(*compiled(family, "ragged", 3, fullgraph=True))
        torch.compiler.reset()
        found = compiled(family, [(9, (6,))], fullgraph=True)
        assert close(*found)
    assert close(found[0], logits(answer(family, "sdpa", [(9, (6, 0))], 5)))


def test_a_graph_goes_on_with_a_conversation() -> None:
    """Two prompts with pictures and their answers in one static cache."""
    config = CompileConfig(backend="eager", mode="default", fullgraph=True)
    config._compile_all_devices = True
    again, lm = inputs("llava", [(8, (2, "image", 3))]), copy.deepcopy(model("llava"))
    del lm.model.language_model.layers[3:]  # compiles sooner
    vars(lm).pop("_compiled_call", None)  # transformers keeps it on the model: a copy would run the original

    def talk(**more: Any) -> torch.Tensor:
        room = StaticCache(config=lm.config.get_text_config(), max_cache_len=160)
        same = {"past_key_values": room, "max_new_tokens": 4, "do_sample": False, **more}
        ids = torch.cat([lm.generate(**inputs("llava", ONE), **same), again["input_ids"]], dim=1)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": again["pixel_values"]}
        return lm.generate(**given, **same)

    with tokenprune.prune(lm, {"prune": RECIPES["entropy"]}) as pruning:
        expected = talk(disable_compile=True)
        assert pruning.state is not None
        assert pruning.state.earlier is not None
        assert torch.equal(talk(compile_config=config), expected)


@pytest.mark.refused("Caches", "a prefill in torch.compile with `fullgraph=True`")
def test_a_prefill_in_one_graph_is_refused_with_a_sentence() -> None:
    lm, given = copy.deepcopy(model("llava")), inputs("llava", ONE)
    del lm.model.language_model.layers[2:]
    run = torch.compile(lambda **given: lm(**given), backend="eager", fullgraph=True)
    with (
        torch.no_grad(),
        tokenprune.prune(lm, {"prune": RECIPES["diversity"]}),
        pytest.raises(RuntimeError, match="With fullgraph=True compile decode steps only"),
    ):
        run(**given)


def test_recompilation_would_be_seen() -> None:
    """Proof that the test above can fail."""
    with (
        tokenprune.prune(model("llava"), PLANS["attention"]),
        torch.compiler.set_stance("fail_on_recompile"),
        pytest.raises(RuntimeError, match="recompile"),
    ):
        compiled("llava", "ragged")


def test_compiled_code_follows_blocks_that_come_and_go() -> None:
    """Compiled code does not look whether hooks came or went: it must not outlive a change of them."""
    plain = compiled("llava", "ragged")
    assert close(*plain)
    for plan in ("attention", "mixture"):
        with tokenprune.prune(model("llava"), PLANS[plan]):
            found = compiled("llava", "ragged")
        assert close(*found)
        assert not close(found[0], plain[0])
        assert torch.equal(compiled("llava", "ragged")[0], plain[0])


@pytest.mark.refused("Caches", "a prefill in torch.compile")
@pytest.mark.parametrize("how", ["forward", "compile", "function"])
def test_a_compiled_prefill_is_refused_not_left_unpruned(how: str) -> None:
    lm, given = copy.deepcopy(model("llava")), inputs("llava", ONE)
    del lm.model.language_model.layers[2:]  # compiles sooner
    run: Any = lm
    if how == "forward":
        lm.forward = torch.compile(lm.forward, backend="eager")
    elif how == "compile":
        lm.compile(backend="eager")
    else:
        run = torch.compile(lambda **given: lm(**given), backend="eager")
    with torch.no_grad():
        plain = run(**given).logits
        first = {"prune": RECIPES["diversity"]}
        with tokenprune.prune(lm, first), pytest.raises(PromptError, match="cache_implementation='static'"):
            run(**given)
        assert close(run(**given).logits, plain)
