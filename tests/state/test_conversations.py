"""Later turns with pictures of their own, on a cache that was pruned before: pruning still equals masking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import ONE, answer, inputs, model
from oracle import RECIPES, close
from talks import FIRST, SECOND, THIRD, Masked, Talk, converse
from transformers import DynamicCache

import tokenprune
from tokenprune import Scorer
from tokenprune.errors import PromptError
from tokenprune.state.prompt import Prompt as PromptState

FAMILIES = ("llava", "llava_next", "video_llava")


@pytest.mark.works("Conversations", "pictures in later turns")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_in_later_turns_are_pruned_as_masked(family: str, recipe: str) -> None:
    states: list[PromptState] = []
    with tokenprune.prune(model(family), {"prune": RECIPES[recipe]}) as pruning:
        talk = Talk(family)
        pruned = []
        for prompts in (FIRST, SECOND, THIRD):
            pruned.append(talk.turn(prompts))
            states.append(pruning.state)
            for word in (17, 23):
                pruned.append(talk.say(torch.full((3, 1), word)))
    assert [state.start for state in states] == [0, states[0].end + 2, states[1].end + 2]
    assert [state.counts for state in states] == [
        tuple(int(n) for n in (inputs(family, prompts)["input_ids"] == 5).sum(1)) for prompts in (FIRST, SECOND, THIRD)
    ]
    masked = converse(Masked(family, states))
    full = converse(Talk(family))
    for i, (a, b) in enumerate(zip(pruned, masked, strict=True)):
        assert close(a, b), i
    assert not close(pruned[-1], full[-1])


@pytest.mark.works("Conversations", "placeholders without pictures, as words")
@pytest.mark.parametrize("recipe", ["mixture", "pyramid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_placeholder_without_a_picture_is_a_word(family: str, recipe: str) -> None:
    """As drafts or a model that says it make one: nothing is dropped with it, also right behind a picture."""
    first = [(3, (2, "image", 3, "image")), (2, (7,)), (1, (4, "image"))]
    words = [torch.tensor([[5, 17, 5, 5], [23, 5, 17, 23], [5, 5, 19, 5]]), torch.full((3, 1), 5)]

    def converse(talk: Talk) -> list[torch.Tensor]:
        found = [talk.turn(first)]
        for ids in words:
            found.append(talk._pass(ids, torch.ones_like(ids)))
        return found

    with tokenprune.prune(model(family), {"prune": RECIPES[recipe]}) as pruning:
        pruned, state = converse(Talk(family)), pruning.state
        assert state is not None
        assert state.start == 0
    for a, b in zip(pruned[1:], converse(Masked(family, [state]))[1:], strict=True):
        assert close(a, b)
    assert not close(pruned[-1], converse(Talk(family))[-1])


def test_placeholders_of_a_first_turn_of_text_are_words_too() -> None:
    """The pass after it gets no picture either."""
    talk, plain = Talk("llava"), Talk("llava")
    ids = torch.tensor([[5, 17, 5]] * 3)
    text = [(9, (6,))] * 3
    expected = [plain.turn(text), plain._pass(ids, torch.ones_like(ids))]
    with tokenprune.prune(model("llava"), {"prune": RECIPES["mixture"]}):
        assert torch.equal(talk.turn(text), expected[0])
        assert torch.equal(talk._pass(ids, torch.ones_like(ids)), expected[1])


def test_rotary_tables_of_another_width_are_refused() -> None:
    """Qwen makes those of the whole conversation where a later turn gives no positions; stock fails there, too."""
    lm = model("qwen2_5_vl")
    first, second = inputs("qwen2_5_vl", ONE), inputs("qwen2_5_vl", [(8, (4, "image", 2))])
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    later = {**second, "attention_mask": mask}
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="must match"):
            lm(**later, past_key_values=lm(**first).past_key_values)
        with tokenprune.prune(lm, {"prune": RECIPES["diversity"]}):
            cache = lm(**first).past_key_values
            wide, new = mask.shape[1], second["input_ids"].shape[1]
            with pytest.raises(PromptError, match=f"rotary tables of {wide} columns for {new} new ones.*position_ids"):
                lm(**later, past_key_values=cache)
            positions = (mask.cumsum(1) - 1)[:, -new:]
            assert lm(**later, position_ids=positions, past_key_values=cache).logits.isfinite().all()


class Recorder(Scorer):
    """Keeps the first tokens; records attention rows as the scorer sees them."""

    def __init__(self, found: list[torch.Tensor], block: str) -> None:
        self.found, self.block = found, block

    def score(self, seen: Any) -> torch.Tensor:
        self.found.append(seen.attention("last", self.block))
        return -torch.arange(len(seen.visual)).float()


@pytest.mark.parametrize("block", ["previous", "next"])
def test_attention_in_a_later_turn_counts_the_earlier_columns(block: str) -> None:
    """The same conversation as one prompt or as two turns: the new picture gets the same attention."""
    ids = torch.randint(10, 100, (1, 30), generator=torch.Generator().manual_seed(0))
    ids[0, 8:24] = 5
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    lm, found = model("llava"), []
    recipe = {"prune": [{"scorer": Recorder(found, block), "schedule": {"name": "fixed", "layer": 2, "keep": 4}}]}
    with torch.no_grad(), tokenprune.prune(lm, recipe):
        lm(input_ids=ids, pixel_values=picture)
        cache = lm(input_ids=ids[:, :6]).past_key_values
        lm(input_ids=ids[:, 6:], pixel_values=picture, past_key_values=cache)
    assert close(found[1], found[0])


@pytest.mark.works("Conversations", "compact positions over turns")
def test_compact_positions_go_on_over_turns() -> None:
    """Dropping everything and renumbering leaves the text alone: it answers as if the pictures had never been."""
    recipe = {
        "prune": [
            {"scorer": "random", "schedule": {"name": "fixed", "layer": 0, "keep": 0}, "positions": "compact"},
        ]
    }
    lm = model("llava")

    def talk(with_pictures: bool) -> list[torch.Tensor]:
        cache, found = DynamicCache(config=lm.config.get_text_config()), []
        for seed in (1, 2):
            given = inputs("llava", [(seed, (3, "image", 4))])
            del given["attention_mask"]
            if not with_pictures:
                given = {"input_ids": given["input_ids"][given["input_ids"] != 5][None]}
            for ids in (given, {"input_ids": torch.tensor([[17]])}):
                found.append(lm(**ids, past_key_values=cache).logits[:, -1])
        return found

    with torch.no_grad():
        plain = talk(with_pictures=False)
        with tokenprune.prune(lm, recipe):
            pruned = talk(with_pictures=True)
    for a, b in zip(pruned, plain, strict=True):
        assert close(a, b)


@pytest.mark.refused("Conversations", "cropping a cache into its pruned prompt")
def test_cropping_into_a_pruned_prompt_is_refused() -> None:
    with torch.no_grad(), tokenprune.prune(model("llava"), {"prune": RECIPES["mixture"]}):
        talk = Talk("llava")
        expected = [talk.turn(FIRST), talk.say(torch.full((3, 1), 17))]
        length = talk.cache.get_seq_length()
        talk.cache.crop(-1)
        talk.mask = talk.mask[:, :-1]
        assert talk.cache.get_seq_length() == length - 1
        assert close(talk.say(torch.full((3, 1), 17)), expected[1])
        with pytest.raises(PromptError, match="grew by 1"):
            talk.cache.crop(-2)


@pytest.mark.refused("Conversations", "chunked prefill that splits a picture")
def test_chunks_that_split_a_picture_are_refused() -> None:
    with torch.no_grad(), tokenprune.prune(model("llava"), {"prune": RECIPES["entropy"]}):
        whole = answer("llava", "sdpa", ONE).sequences
        with pytest.raises(PromptError, match=f"at least {3 + 16}, which ends after this one"):
            answer("llava", "sdpa", ONE, prefill_chunk_size=12)
        with pytest.raises(PromptError, match="or choose the whole prompt"):
            answer("llava", "sdpa", ONE, prefill_chunk_size=8)  # its end is not in sight
        after_it = answer("llava", "sdpa", ONE, prefill_chunk_size=3 + 16).sequences
    # transformers 5.19 loses pictures in chunks, pruned or not; where it does not, chunks change nothing
    plain = [answer("llava", "sdpa", ONE, prefill_chunk_size=size).sequences for size in (None, 3 + 16)]
    assert torch.equal(after_it, whole) == torch.equal(*plain)


@pytest.mark.works("Caches", "`cache.reset()`")
def test_a_reset_cache_starts_anew() -> None:
    with torch.no_grad(), tokenprune.prune(model("llava"), {"prune": RECIPES["mixture"]}):
        talk = Talk("llava")
        first = talk.turn(FIRST)
        talk.cache.reset()
        talk.mask = talk.mask[:, :0]
        assert talk.cache.get_seq_length() == 0
        assert torch.equal(talk.turn(FIRST), first)
