"""Every kind of cache: pruning equals masking on the same kind, or it is refused by name; and who may continue one."""

from __future__ import annotations

import copy
import gc
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from families import DEPTH, FAMILIES, ONE, PADDED, RAGGED, answer, inputs, logits, model
from masking import hidden_by_mask
from modules import attributes
from oracle import RECIPES, close
from talks import FIRST, SECOND, Masked, Talk
from transformers import Cache, DynamicCache, QuantizedCache, cache_utils
from transformers.cache_utils import DynamicLayer, QuantizedLayer

import tokenprune
from tokenprune.errors import PromptError
from tokenprune.state.prompt import Prompt as PromptState
from tokenprune.state.view import View

MIXTURE = {"prune": RECIPES["mixture"]}


class Rounded(QuantizedLayer):
    """transformers' quantised layer with a quantiser that rounds each number alone, whatever stands beside it."""

    def __init__(self) -> None:
        super().__init__(residual_length=3)

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return (tensor * 8).round().to(torch.int16)

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) / 8


class Stream:
    """A stream whose work is done when somebody waits for it, as late as a real one may."""

    def __init__(self) -> None:
        self.step: deque[Callable[[], None]] = deque()

    def wait_stream(self, other: Stream) -> None:
        while other.step:
            other.step.popleft()()


class Late(DynamicLayer):
    """A layer that is away between passes: what comes back can be read once its stream was waited for."""

    stream: Any = None
    away = False

    def offload(self) -> None:
        self.away = self.is_initialized

    def prefetch(self) -> None:
        if self.away:
            self.away = False
            there = self.keys, self.values
            self.keys, self.values = (torch.full_like(tensor, 1e3) for tensor in there)
            self.stream.step += [partial(self.keys.copy_, there[0]), partial(self.values.copy_, there[1])]


def offloaded(monkeypatch: pytest.MonkeyPatch) -> Cache:
    """transformers' offloading, without a GPU."""
    main, prefetch = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: main)
    monkeypatch.setattr(torch, "Stream", lambda: prefetch)
    cache = Cache(layers=[Late() for _ in range(DEPTH)], offloading=True)
    for layer in cache.layers:
        layer.stream = prefetch
    monkeypatch.setattr(Cache, "prefetch", lambda self, at, *_: self.layers[at % DEPTH].prefetch())
    return cache


def text_config() -> Any:
    return model("llava").config.get_text_config()


EXACT: dict[str, Callable[[pytest.MonkeyPatch], Cache]] = {
    "dynamic": lambda _: DynamicCache(),
    "dynamic, with a config": lambda _: DynamicCache(config=text_config()),
    "offloaded": offloaded,
    "quantized": lambda _: Cache(layers=[Rounded() for _ in range(DEPTH)]),
}
CHANGED = {"quantized"}  # the cache itself changes the answers a little


@pytest.mark.works("Caches", "dynamic, offloaded and quantised caches")
@pytest.mark.parametrize("recipe", ["mixture", "pyramid"])
@pytest.mark.parametrize("kind", EXACT)
def test_a_cache_of_kind(kind: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ragged batch through `generate`: pruned answers are those of the masked model with such a cache."""

    def run() -> torch.Tensor:
        with monkeypatch.context() as patch:
            return logits(answer("llava", "sdpa", RAGGED, past_key_values=EXACT[kind](patch)))

    plain = run()
    assert close(plain, logits(answer("llava", "sdpa", RAGGED))) == (kind not in CHANGED)
    with tokenprune.prune(model("llava"), {"prune": RECIPES[recipe]}) as pruning:
        pruned = run()
    with hidden_by_mask(model("llava"), inputs("llava", RAGGED)["attention_mask"], pruning.state.views):
        masked = run()
    assert close(pruned, masked)
    assert not close(pruned, plain)


@pytest.mark.parametrize("recipe", ["mixture", "attention", "pyramid"])
@pytest.mark.parametrize("kind", EXACT)
def test_later_turns_with_a_cache_of_kind(kind: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later pictures too; a scorer that reads the keys of earlier turns gets the right ones or is refused."""
    states: list[PromptState] = []
    with tokenprune.prune(model("llava"), {"prune": RECIPES[recipe]}) as pruning:
        talk, pruned = Talk("llava", EXACT[kind](monkeypatch)), []
        for prompts in (FIRST, SECOND):
            if kind == "quantized" and prompts is SECOND and recipe != "mixture":
                with pytest.raises(
                    PromptError, match=r"reads the keys of earlier turns, which a \w*Cache does not keep"
                ):
                    talk.turn(prompts)
                return
            pruned.append(talk.turn(prompts))
            states.append(pruning.state)
            pruned += [talk.say(torch.full((3, 1), word)) for word in (17, 23)]

    def again(talk: Talk) -> list[torch.Tensor]:
        found = []
        for prompts in (FIRST, SECOND):
            found += [talk.turn(prompts), *(talk.say(torch.full((3, 1), word)) for word in (17, 23))]
        return found

    masked = again(Masked("llava", states, EXACT[kind](monkeypatch)))
    full = again(Talk("llava", EXACT[kind](monkeypatch)))
    assert all(close(a, b) for a, b in zip(pruned, masked, strict=True))
    assert not close(pruned[-1], full[-1])
    if kind in CHANGED:
        return  # other states: maybe other tokens
    with tokenprune.prune(model("llava"), {"prune": RECIPES[recipe]}) as pruning:
        talk = Talk("llava")
        for state, prompts in zip(states, (FIRST, SECOND), strict=True):
            talk.turn(prompts)  # the same tokens stay as with keys at hand
            assert all(torch.equal(view.index, state.views[layer].index) for layer, view in pruning.state.views.items())
            for word in (17, 23):
                talk.say(torch.full((3, 1), word))


@pytest.mark.works("Caches", "beam search on each kind of cache")
@pytest.mark.parametrize("kind", EXACT)
def test_beams_with_a_cache_of_kind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reordered with its beams (a quantised cache does so later): each prompt answers as alone."""
    beams = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}

    def run(prompts: Any) -> Any:
        with monkeypatch.context() as patch:
            return answer("llava", "sdpa", prompts, past_key_values=EXACT[kind](patch), **beams)

    with tokenprune.prune(model("llava"), MIXTURE):
        together, alone = run(RAGGED), [run([prompt]) for prompt in RAGGED]
    assert torch.equal(together.sequences[:, -6:], torch.cat([one.sequences[:, -6:] for one in alone]))
    scores = torch.cat([one.sequences_scores for one in alone])
    assert torch.allclose(together.sequences_scores, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.works("Caches", "fp8 cache (within rounding)")
@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this transformers has no fp8 cache")
def test_an_fp8_cache() -> None:
    """Its one scale depends on every token that is held, so pruned and masked differ by rounding."""

    def cache() -> Cache:
        return QuantizedCache(backend="fp8", config=text_config())

    with tokenprune.prune(model("llava"), MIXTURE) as pruning:
        talk = Talk("llava", cache())
        pruned = [talk.turn(FIRST), *(talk.say(torch.full((3, 1), word)) for word in (17, 23))]
    found = []
    for talk in (Masked("llava", [pruning.state], cache()), Talk("llava", cache())):
        found.append([talk.turn(FIRST), *(talk.say(torch.full((3, 1), word)) for word in (17, 23))])
    for a, masked, full in zip(pruned, *found, strict=True):
        scale = masked.abs().max()
        assert (a - masked).abs().max() < 0.05 * scale
        assert (a - full).abs().max() > 0.1 * scale


@pytest.mark.refused("Caches", "prompt look-up with a quantised cache")
def test_look_up_decoding_with_a_quantized_cache_is_refused() -> None:
    """transformers fails there too, with an error about shapes."""
    lookup = [(12, (3, "image", 9))]
    more = {"past_key_values": EXACT["quantized"](pytest.MonkeyPatch()), "prompt_lookup_num_tokens": 3}
    refused = pytest.raises(PromptError, match="a Rounded cannot give columns back")
    with tokenprune.prune(model("llava"), MIXTURE), refused:
        answer("llava", "sdpa", lookup, steps=12, **more)


# -- who may continue a pruned cache -----------------------------------------------------------------------------

REFUSED = "this cache was pruned, and no pruning block follows this pass: go on inside `with tokenprune.prune"
WORD = {"input_ids": torch.tensor([[17]])}
KINDS_OF_PRUNING = {
    "at the projector": RECIPES["diversity"],
    "in a block": RECIPES["entropy"],
    "in stages": RECIPES["mixture"],
    "compact": [{**RECIPES["pyramid"][0], "positions": "compact"}],
}


def pruned_cache(recipe: Any, prompts: Any = ONE, family: str = "llava") -> Any:
    with torch.no_grad(), tokenprune.prune(model(family), recipe):
        return model(family)(**inputs(family, prompts)).past_key_values


LONGER = torch.cat([inputs("llava", ONE)["input_ids"], WORD["input_ids"]], dim=1)
ELSEWHERE: dict[str, Callable[[Any, Any], Any]] = {
    "forward": lambda lm, cache: lm(**WORD, past_key_values=cache),
    "generate": lambda lm, cache: lm.generate(input_ids=LONGER, past_key_values=cache, max_new_tokens=2),
    "a copy of the cache": lambda lm, cache: lm(**WORD, past_key_values=copy.deepcopy(cache)),
    "another model": lambda lm, cache: copy.deepcopy(model("llava"))(**WORD, past_key_values=cache),
    "the decoder alone, inside a block": lambda lm, cache: lm.model.language_model(**WORD, past_key_values=cache),
}


@pytest.mark.refused("Conversations", "going on outside a pruning block")
@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("pruning", KINDS_OF_PRUNING)
def test_going_on_outside_a_block_is_refused(pruning: str, where: str) -> None:
    recipe = {"prune": KINDS_OF_PRUNING[pruning]}
    lm, cache = model("llava"), pruned_cache(recipe)
    block = tokenprune.prune(lm, recipe) if "inside a block" in where else nullcontext()
    with torch.no_grad(), block, pytest.raises(PromptError, match=REFUSED):
        ELSEWHERE[where](lm, cache)


@pytest.mark.parametrize("prompt", ["nothing dropped", "text alone"])
def test_a_cache_that_lacks_nothing_goes_on_anywhere(prompt: str) -> None:
    keep_all = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}}]}
    recipe, prompts = (keep_all, ONE) if prompt == "nothing dropped" else (MIXTURE, [(9, (6,))])
    lm = model("llava")
    cache = pruned_cache(recipe, prompts)
    with torch.no_grad():
        expected = lm(**WORD, past_key_values=lm(**inputs("llava", prompts)).past_key_values).logits
        assert torch.equal(lm(**WORD, past_key_values=cache).logits, expected)


KEEP_ALL = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 1.0}}]}


@pytest.mark.works("Conversations", "cropping a cache that lacks nothing")
@pytest.mark.parametrize("prompt", ["nothing dropped", "text alone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_that_lacks_nothing_gives_columns_back(family: str, prompt: str) -> None:
    recipe, prompts = (KEEP_ALL, ONE) if prompt == "nothing dropped" else (MIXTURE, [(9, (6,))])
    lm, given = model(family), inputs(family, prompts)
    shorter = {
        k: v[:, :-3] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v for k, v in given.items()
    }
    with torch.no_grad():
        expected = lm(**WORD, past_key_values=lm(**shorter).past_key_values).logits
        with tokenprune.prune(lm, recipe):
            cache = lm(**given, past_key_values=DynamicCache()).past_key_values
            cache.crop(-3)
            assert cache.get_seq_length() == given["input_ids"].shape[1] - 3
            assert close(lm(**WORD, past_key_values=cache).logits, expected)


def test_cropping_a_later_prompt_that_lacks_nothing() -> None:
    """Down to the columns that an earlier prompt had a part in."""
    second = [(seed, (*parts, 2)) for seed, parts in SECOND]

    def talk(crop: bool) -> tuple[torch.Tensor, Any]:
        with tokenprune.prune(model("llava"), MIXTURE):
            talk = Talk("llava")
            talk.turn(FIRST)
        with tokenprune.prune(model("llava"), KEEP_ALL):
            given = inputs("llava", second)
            ids, mask = given.pop("input_ids"), given.pop("attention_mask")
            at = ids.shape[1] - (0 if crop else 2)
            talk._pass(ids[:, :at], mask[:, :at], **given)
            if crop:
                talk.cache.crop(-2)
                talk.mask = talk.mask[:, :-2]
            return talk.say(torch.full((3, 1), 17)), talk

    with torch.no_grad():
        (found, talked), (expected, _) = talk(crop=True), talk(crop=False)
        assert close(found, expected)
        grew = talked.cache.get_seq_length() - inputs("llava", FIRST)["input_ids"].shape[1]
        with pytest.raises(PromptError, match=f"cannot take {grew + 1} columns off a cache that grew by {grew} since"):
            talked.cache.crop(-grew - 1)


@pytest.mark.works("Conversations", "going on in another pruning block")
@pytest.mark.parametrize("family", FAMILIES)
def test_going_on_in_another_block(family: str) -> None:
    """Any recipe continues a pruned cache: words as in the same block, later pictures by the new recipe."""
    lm = model(family)
    with torch.no_grad():
        with tokenprune.prune(lm, MIXTURE):
            cache = lm(**inputs(family, ONE)).past_key_values
            expected = lm(**WORD, past_key_values=copy.deepcopy(cache)).logits
        with tokenprune.prune(lm, {"prune": RECIPES["pyramid"]}):
            assert torch.equal(lm(**WORD, past_key_values=cache).logits, expected)


@pytest.mark.works("Conversations", "turns pruned by different recipes")
def test_turns_pruned_by_different_recipes() -> None:
    states, pruned = [], []
    talk = Talk("llava")
    for prompts, recipe in ((FIRST, "mixture"), (SECOND, "pyramid")):
        with tokenprune.prune(model("llava"), {"prune": RECIPES[recipe]}) as pruning:
            pruned += [talk.turn(prompts), talk.say(torch.full((3, 1), 17))]
        states.append(pruning.state)
    for i, other in enumerate((Masked("llava", states), Talk("llava"))):
        found = []
        for prompts in (FIRST, SECOND):
            found += [other.turn(prompts), other.say(torch.full((3, 1), 17))]
        assert [close(a, b) for a, b in zip(pruned, found, strict=True)] == [i == 0] * 4


def test_a_failing_pass_does_not_leave_a_cache_followed() -> None:
    lm, cache = model("llava"), pruned_cache(MIXTURE)
    broken = lm.model.language_model.layers[4].register_forward_pre_hook(_fail)
    try:
        with torch.no_grad(), tokenprune.prune(lm, MIXTURE), pytest.raises(ZeroDivisionError):
            lm(**WORD, past_key_values=copy.deepcopy(cache))
        copied = copy.deepcopy(cache)
        with torch.no_grad(), tokenprune.prune(lm, MIXTURE), pytest.raises(ZeroDivisionError):
            lm(**WORD, past_key_values=copied)
    finally:
        broken.remove()
    with torch.no_grad(), pytest.raises(PromptError, match=REFUSED):
        lm(**WORD, past_key_values=copied)


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_leaving_the_block_while_a_thread_answers() -> None:
    """The pass that runs is finished as it began; the next one is refused, not answered wrongly."""
    lm, given = model("llava"), inputs("llava", RAGGED)
    hooks = attributes(lm)
    pruning = tokenprune.prune(lm, MIXTURE)
    inside, found = threading.Event(), []

    def wait(*_: Any) -> None:
        inside.set()
        while pruning._pruner._attached:
            time.sleep(0.001)

    def run() -> None:
        with torch.no_grad():
            out = lm(**given)
            found.append(out.logits)
            try:
                lm(input_ids=torch.full((3, 1), 17), past_key_values=out.past_key_values)
            except PromptError as error:
                found.append(error)

    with torch.no_grad(), pruning:
        expected = lm(**given).logits
    handle = lm.model.language_model.layers[3].register_forward_pre_hook(wait)
    thread = threading.Thread(target=run)
    with pruning:
        thread.start()
        inside.wait()
    handle.remove()
    thread.join()
    assert torch.equal(found[0], expected)
    assert "no pruning block follows" in str(found[1])
    assert attributes(lm) == hooks


# -- memory ------------------------------------------------------------------------------------------------------


def live() -> dict[str, int]:
    gc.collect()
    kinds = {"states": PromptState, "views": View, "tensors": torch.Tensor, "caches": Cache}
    objects = gc.get_objects()
    return {name: sum(issubclass(type(one), kind) for one in objects) for name, kind in kinds.items()}


def test_a_thread_killed_in_its_pass_holds_nobody_up() -> None:
    lm = model("llava")
    answer("llava", "sdpa", ONE)
    before = attributes(lm)

    def die(*_: Any) -> None:
        raise SystemExit

    with tokenprune.prune(lm, MIXTURE):
        handle = lm.model.language_model.layers[3].register_forward_pre_hook(die)
        thread = threading.Thread(target=lambda: answer("llava", "sdpa", ONE))
        thread.start()
        thread.join()
        handle.remove()
    assert attributes(lm) == before
    expected = answer("llava", "sdpa", ONE).sequences
    assert torch.equal(answer("llava", "sdpa", ONE).sequences, expected)


@pytest.mark.slow
def test_five_hundred_prompts_leave_nothing() -> None:
    """Counted objects, not megabytes; a cache that is held holds its own state only."""
    lm, batches = model("llava"), [inputs("llava", prompts) for prompts in (ONE, PADDED)]
    before = live()["states"]  # that other tests hold
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES["pyramid"]}):
        counts: list[dict[str, int]] = []
        for prompt in range(500):
            cache = lm(**batches[prompt % 2]).past_key_values
            if prompt % 166 == 1:
                lm(input_ids=torch.full((2, 1), 17), past_key_values=cache)
                counts.append(live())
        held = [cache, lm(**batches[1]).past_key_values]
        assert live()["states"] - before == counts[-1]["states"] - before + 1 == len(held)
    assert len(counts) == 4
    assert all(count == counts[0] for count in counts)
    assert counts[0]["states"] - before == 1


def test_a_removed_pruner_is_freed() -> None:
    lm = model("llava")
    answer("llava", "sdpa", ONE)
    hooks = attributes(lm)
    with tokenprune.prune(lm, MIXTURE) as pruning:
        cache = lm(**inputs("llava", ONE)).past_key_values
    pruner = weakref.ref(pruning._pruner)
    assert attributes(lm) == hooks
    del pruning
    gc.collect()
    assert pruner() is None
    assert cache.layers[0].prompt.pruned  # the cache keeps what it needs
