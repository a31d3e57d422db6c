"""Passes inside the vision tower: pruning == masking there too, holes are closed, keep-all is no pruning."""

from __future__ import annotations

import gc
import re
import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from families import BATCHES, DEPTH, FAMILIES, MIXED, RAGGED, answer, has_video, inputs, logits, model
from masking import hidden_by_mask
from notes import passed_as_it_is
from oracle import close, numbered_anew, unpruned
from talks import FIRST, SECOND, THIRD, Masked, Talk, converse
from tower_masking import hidden_in_tower, seen_gone

import tokenprune
from tokenprune import ops
from tokenprune.errors import (
    BudgetError,
    LayerError,
    PromptError,
    RecipeError,
    ScorerError,
    TokenpruneError,
    UnsupportedModelError,
)
from tokenprune.families.clip_tower import ClipTower
from tokenprune.families.llava import LlavaAdapter
from tokenprune.families.window_tower import WindowTower
from tokenprune.parts.scorer import VisionScorer
from tokenprune.recipe import load
from tokenprune.seen.pictures import Pictures, Ranking
from tokenprune.vision.forward import VisionPruner


@dataclass(frozen=True)
class Salient(VisionScorer):
    """Reads all there is to read: the tokens of each picture differ from picture to picture."""

    def rank(self, pictures: Pictures) -> Ranking:
        assert pictures.places.shape == (*pictures.tokens.shape, 2)
        return Ranking(pictures.salience + pictures.received + pictures.keys.norm(dim=-1))


def tower(scorer: Any = "random", merge: str | None = None, **schedule: Any) -> dict[str, Any]:
    return {"tower": "vision", "scorer": scorer, "schedule": schedule, "merge": merge}


COMPACT = {"positions": "compact"}
MEAN = {"name": "spread", "strategy": "mean", "keep": 0.4}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "embeddings": [tower(name="fixed", layer=0, keep=9)],
    "salient": [tower(Salient(), name="fixed", layer=1, keep=0.5)],
    "projector": [tower(Salient(), name="table", layers=["23/24"], keep=[5])],
    "stages": [tower(Salient(), **MEAN)],
    "one": [tower(name="fixed", layer=1, keep=0)],
    "two-sided": [
        tower(Salient(), **MEAN),
        {"scorer": "diversity", "schedule": {"name": "fixed", "layer": 0, "keep": 0.8}},
        {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 3}},
        {"scorer": "random", "schedule": {"name": "fixed", "layer": 4, "keep": 1}},
    ],
    "compact": [tower(Salient(), **MEAN) | COMPACT],
    "compact, then original": [
        tower(Salient(), **MEAN) | COMPACT,
        {"scorer": "diversity", "schedule": {"name": "fixed", "layer": 0, "keep": 0.8}},
        {"scorer": "random", "schedule": {"name": "fixed", "layer": 3, "keep": 2}},
    ],
    "compact twice": [
        tower(Salient(), name="fixed", layer=1, keep=0.7) | COMPACT,
        {"scorer": "random", "schedule": {"name": "fixed", "layer": 1, "keep": 0.5}},
        {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 3, "keep": 2}, **COMPACT},
    ],
}


def check_oracle(family: str, attention: str, prompts: Any, recipe: Any, monkeypatch: Any) -> tokenprune.Pruning:
    lm = model(family, attention)
    with seen_gone(monkeypatch) as runs, tokenprune.prune(lm, {"prune": recipe}) as pruning:
        pruned = logits(answer(family, attention, prompts))
    state = pruning.state
    assert state is not None
    assert sorted(state.views) == sorted(state.stages)
    assert any((gone >= 0).any() for gone in runs)
    mask = inputs(family, prompts)["attention_mask"]
    numbered = {} if family == "qwen2_5_vl" else numbered_anew(state)  # M-RoPE keeps its places in the picture
    with hidden_in_tower(family, lm, runs), hidden_by_mask(lm, mask, state.views, numbered):
        masked = logits(answer(family, attention, prompts))
    assert close(pruned, masked)
    if numbered:
        with hidden_in_tower(family, lm, runs), hidden_by_mask(lm, mask, state.views):
            assert not close(pruned, logits(answer(family, attention, prompts)))
    with hidden_by_mask(lm, mask, state.views, numbered):
        leaky = logits(answer(family, attention, prompts))  # dropped rows still seen inside the tower
    full = unpruned(family, attention, tuple(prompts))
    shown = [row for row, count in enumerate(state.counts) if count]
    assert not close(pruned[shown], full[shown])
    assert close(pruned, leaky) == (min(state.stages) == -1)  # right before the projector nobody looks back
    return pruning


@pytest.mark.works("Inside the vision tower", "batches: one prompt, left-padded, ragged with unequal pictures")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_equals_masking(family: str, attention: str, batch: str, recipe: str, monkeypatch: Any) -> None:
    """Prefill and five decode steps; and the mask inside the tower was needed."""
    check_oracle(family, attention, BATCHES[batch], RECIPES[recipe], monkeypatch)


@pytest.mark.works("Inside the vision tower", "videos and pictures together")
@pytest.mark.parametrize("recipe", ["stages", "two-sided"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if has_video(family)])
def test_pruning_equals_masking_with_videos(family: str, recipe: str, monkeypatch: Any) -> None:
    check_oracle(family, "sdpa", MIXED, RECIPES[recipe], monkeypatch)


@pytest.mark.parametrize("recipe", ["stages", "projector"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_projector_gives_the_rows_that_masking_gives(family: str, recipe: str, monkeypatch: Any) -> None:
    lm = model(family)
    given: list[torch.Tensor] = []
    projector = lm.model.visual.merger if family == "qwen2_5_vl" else lm.model.multi_modal_projector

    def forward() -> list[torch.Tensor]:
        given.clear()
        handle = projector.register_forward_hook(lambda m, args, output: given.append(output.flatten(0, -2)))
        try:
            with torch.no_grad():
                lm(**inputs(family, RAGGED))
        finally:
            handle.remove()
        return list(given)

    with seen_gone(monkeypatch) as runs, tokenprune.prune(lm, {"prune": RECIPES[recipe]}):
        pruned = forward()
    with hidden_in_tower(family, lm, runs):
        masked = forward()
    unit = 4 if family == "qwen2_5_vl" else 1
    for ours, theirs, gone in zip(pruned, masked, runs, strict=True):
        left = gone[::unit] < 0
        assert ours.isnan().any(-1).tolist() == (~left).tolist()
        assert close(ours[left], theirs[left])


@pytest.mark.works("Inside the vision tower", "keep-all is bit-equal to no pruning")
@pytest.mark.parametrize("merge", [None, "nearest"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_is_no_pruning(family: str, batch: str, merge: str | None) -> None:
    recipe = {"prune": [tower(Salient(), merge, name="spread", strategy="mean", keep=1.0)]}
    with tokenprune.prune(model(family), recipe) as pruning:
        kept = logits(answer(family, "sdpa", BATCHES[batch]))
    assert torch.equal(kept, unpruned(family, "sdpa", tuple(BATCHES[batch])))
    assert pruning.state is not None
    assert not pruning.state.views


@pytest.mark.works("Inside the vision tower", "a prompt in a batch answers as alone")
@pytest.mark.parametrize("recipe", ["tome", "evoprune", "folder", "two-sided"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_answers_in_a_batch_as_alone(family: str, recipe: str) -> None:
    """Pictures of different sizes, several in one prompt and none in another; merged or dropped."""
    methods = {
        "tome": [tower("tome", "nearest", **MEAN)],
        "evoprune": [tower("evoprune", "nearest", name="spread", keep=5)],
        "folder": [tower("folder", "nearest", name="table", layers=["23/24"], keep=["1/3"])],
        "two-sided": RECIPES["two-sided"],
    }
    prompts = [*RAGGED, *(MIXED if has_video(family) else [])]
    with tokenprune.prune(model(family), {"prune": methods[recipe]}):
        together = logits(answer(family, "sdpa", prompts))
        for row, prompt in enumerate(prompts):
            assert close(together[row], logits(answer(family, "sdpa", [prompt]))[0])


def test_a_picture_smaller_than_a_window_and_a_video_of_one_frame(monkeypatch: Any) -> None:
    """Qwen: windows are 2 x 2 tokens; a picture of 1 x 2 of them, and windows that lose all they have."""
    lm = model("qwen2_5_vl")
    generator = torch.Generator().manual_seed(0)
    grids = torch.tensor([[1, 2, 4], [1, 6, 10]])
    video = torch.tensor([[1, 4, 4]])
    pixels = torch.randn(2 * 4 + 60, 96, generator=generator)
    tokens = [5] * 2 + [7] + [5] * 15 + [8] + [6] * 4 + [9, 9]
    given = {
        "input_ids": torch.tensor([tokens]),
        "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
        "pixel_values": pixels,
        "image_grid_thw": grids,
        "pixel_values_videos": torch.randn(16, 96, generator=generator),
        "video_grid_thw": video,
    }
    recipe = {"prune": [tower(Salient(), name="fixed", layer=1, keep=3)]}
    with seen_gone(monkeypatch) as runs, tokenprune.prune(lm, recipe) as pruning, torch.no_grad():
        pruned = lm(**given).logits
    assert pruning.state is not None
    assert pruning.state.count_after_vision == (2 + 3 + 3,)
    mask = given["attention_mask"]
    with hidden_in_tower("qwen2_5_vl", lm, runs), hidden_by_mask(lm, mask, pruning.state.views), torch.no_grad():
        assert close(pruned[:, -2:], lm(**given).logits[:, -2:])


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_encodes_before_the_prefill(family: str) -> None:
    given = inputs(family, RAGGED)
    with tokenprune.prune(model(family), {"prune": RECIPES["two-sided"]}) as pruning:
        alone = model(family).generate(**given, max_new_tokens=4, do_sample=False)
        beams = model(family).generate(**given, max_new_tokens=4, do_sample=False, num_beams=2)
        first = model(family)(**given).logits[:, -1].argmax(-1)
    assert torch.equal(alone[:, given["input_ids"].shape[1]], first)
    assert beams.shape == alone.shape
    assert pruning.state is not None


@pytest.mark.works("Inside the vision tower", "later turns with pictures")
@pytest.mark.parametrize("recipe", ["two-sided", "compact", "compact, then original"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava"])
def test_pictures_in_later_turns_are_pruned_as_masked(family: str, recipe: str, monkeypatch: Any) -> None:
    """Three turns with pictures, two words of answer after each."""
    lm, states, pruned = model(family), [], []
    with seen_gone(monkeypatch) as runs, tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        talk = Talk(family)
        for prompts in (FIRST, SECOND, THIRD):
            pruned.append(talk.turn(prompts))
            states.append(pruning.state)
            pruned += [talk.say(torch.full((3, 1), word)) for word in (17, 23)]
    with hidden_in_tower(family, lm, runs):
        masked = converse(Masked(family, states))  # type: ignore[arg-type]
    for ours, theirs in zip(pruned, masked, strict=True):
        assert close(ours, theirs)
    assert not close(pruned[-1], converse(Masked(family, states))[-1])  # type: ignore[arg-type]


@pytest.mark.works("Inside the vision tower", "several threads on one model")
@pytest.mark.parametrize("family", FAMILIES)
def test_threads_prune_their_own_pictures(family: str) -> None:
    lm, given = model(family), [inputs(family, [(seed, (3, "image", 4))]) for seed in range(5)]
    found: dict[int, torch.Tensor] = {}

    def step(number: int) -> None:
        with torch.no_grad():
            found[number] = lm(**given[number]).logits[:, -1]

    with tokenprune.prune(lm, {"prune": RECIPES["two-sided"]}):
        alone = []
        for number in range(5):
            step(number)
            alone.append(found.pop(number))
        threads = [threading.Thread(target=step, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 5
    assert all(close(found[number], alone[number]) for number in range(5))


def test_a_hook_of_another_thread_may_come_without_keywords() -> None:
    """torch adds a hook before it notes that it takes keywords; a thread that runs the module meanwhile gives none."""
    with tokenprune.prune(model("llava"), {"prune": RECIPES["two-sided"]}) as pruning:
        assert pruning._pruner._block_hook(0)(torch.nn.Identity(), (torch.zeros(1, 2, 4),)) is None


@pytest.mark.parametrize("recipe", [{"prune": RECIPES["two-sided"]}, "visionzip"], ids=["pruned", "recorded"])
def test_a_hook_in_the_tower_may_be_called_by_another_thread(recipe: Any) -> None:
    """While one thread encodes: with keywords, or for the moment that the test above speaks of without."""
    lm, rows = model("llava"), torch.zeros(1, 2, 4)
    called: list[Any] = []

    def call(block: Any, known: Any) -> None:
        taps = [hook for hook in block._forward_pre_hooks.values() if hook not in known]
        called.extend(hook(block, (rows,), *more) for hook in taps for more in ((), ({},)))
        called.extend(hook(block, (rows,), rows) for hook in block._forward_hooks.values() if hook not in known)

    blocks = list(lm.model.vision_tower.encoder.layers)
    known = [{*block._forward_pre_hooks.values(), *block._forward_hooks.values()} for block in blocks]

    def in_the_run(module: Any, args: Any) -> None:
        elsewhere(lambda: [call(*each) for each in zip(blocks, known, strict=True)])

    with tokenprune.prune(lm, recipe):
        alone = logits(answer("llava", "sdpa", RAGGED))
        handle = lm.model.vision_tower.embeddings.register_forward_pre_hook(in_the_run)
        try:
            disturbed = logits(answer("llava", "sdpa", RAGGED))
        finally:
            handle.remove()
    assert called
    assert all(given is None for given in called)
    assert torch.equal(disturbed, alone)


def test_blocks_share_what_is_narrowed_until_the_next_stage(monkeypatch: Any) -> None:
    """A deeper tower, where blocks with the same arguments come before and after a stage."""
    import copy

    lm, narrowed = copy.deepcopy(model("qwen2_5_vl")), []
    blocks = lm.model.visual.blocks
    blocks.extend(copy.deepcopy(blocks[0]) for _ in range(3))
    narrow = WindowTower.narrow

    def spy(self: Any, call: Any, rows: torch.Tensor) -> Any:
        narrowed.append(len(rows))
        return narrow(self, call, rows)

    monkeypatch.setattr(WindowTower, "narrow", spy)
    recipe = {"prune": [tower(name="table", layers=["1/6", "4/6"], keep=[9, 5])]}
    with tokenprune.prune(lm, recipe), torch.no_grad():
        lm(**inputs("qwen2_5_vl", BATCHES["one"]))
    assert narrowed == [4 * 9, 4 * 9, 4 * 5]  # the second block sees whole frames, the others windows


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_before_the_projector_states_are_those_of_the_last_block(family: str) -> None:
    """Of the same tokens: LLaVA cuts the CLS rows off in between."""
    lm, seen, given = model(family), [], []

    @dataclass(frozen=True)
    class Noting(VisionScorer):
        def rank(self, pictures: Pictures) -> Ranking:
            seen.append((pictures.keys, pictures.hidden))
            return Ranking(pictures.tokens.float())

    if family == "qwen2_5_vl":
        keys = lm.model.visual.blocks[-1].attn.qkv
        rows = lambda out: out.unflatten(-1, (3, 2, -1))[:, 1].mean(1).unflatten(0, (1, -1, 4)).mean(2)  # noqa: E731
    else:
        keys = lm.model.vision_tower.encoder.layers[-2].self_attn.k_proj
        rows = lambda out: out[:, 1:].unflatten(-1, (2, -1)).mean(2)  # noqa: E731
    handle = keys.register_forward_hook(lambda m, args, out: given.append(rows(out)))
    try:
        with tokenprune.prune(lm, {"prune": [tower(Noting(), name="table", layers=["23/24"], keep=[5])]}):
            answer(family, "sdpa", BATCHES["one"])
    finally:
        handle.remove()
    ((found, hidden),) = seen
    torch.testing.assert_close(found, given[0])
    assert hidden.shape[:2] == found.shape[:2]


# -- merging -------------------------------------------------------------------------------------------------------


def test_folded_tokens_are_weighted_means() -> None:
    """Against loops; three tokens go into one, through another that went before."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 11, 5, generator=generator)
    sizes = torch.randint(1, 4, (3, 11), generator=generator).float()
    for remove in range(11):
        into = ops.fold_pairs(states, sizes, remove, lambda left, places: ops.pair_cosines(left))
        assert [len(set(row.tolist())) for row in into] == [11 - remove] * 3
        folded, weights = ops.fold(states, into, sizes)
        for u in range(3):
            for place in set(into[u].tolist()):
                members = (into[u] == place).nonzero()[:, 0]
                total = sizes[u, members].sum()
                mean = (states[u, members] * sizes[u, members, None]).sum(0) / total
                torch.testing.assert_close(folded[u, place], mean)
                assert weights[u, place] == total
                if len(members) == 1:
                    assert torch.equal(folded[u, place], states[u, place])


def test_the_best_pairs_are_merged() -> None:
    """One round, against the definition: odd places by their best even partner."""
    states = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    into = ops.fold_pairs(states, torch.ones(2, 9), 2, lambda left, places: ops.pair_cosines(left))
    for u in range(2):
        pairs = {
            odd: max(
                (float(torch.cosine_similarity(states[u, odd], states[u, even], 0)), even) for even in range(0, 9, 2)
            )
            for odd in range(1, 9, 2)
        }
        best = sorted(pairs, key=lambda odd: -pairs[odd][0])[:2]
        expected = [pairs[place][1] if place in best else place for place in range(9)]
        assert into[u].tolist() == expected


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_merged_rows_are_means_of_what_entered_the_block(family: str) -> None:
    """What a token's rows become: each of Qwen's four rows with its like."""
    lm, seen = model(family), []
    blocks = lm.model.visual.blocks if family == "qwen2_5_vl" else lm.model.vision_tower.encoder.layers

    @dataclass(frozen=True)
    class IntoFirst(VisionScorer):
        def rank(self, pictures: Pictures) -> Ranking:
            scores = -pictures.tokens.float()
            return Ranking(scores, torch.zeros_like(pictures.tokens))

    def entering() -> torch.Tensor:
        seen.clear()
        handle = blocks[1].register_forward_hook(lambda m, args, output: seen.append(args[0]))
        try:
            with torch.no_grad():
                lm(**inputs(family, BATCHES["one"]))
        finally:
            handle.remove()
        return seen[0].reshape(-1, seen[0].shape[-1])

    whole = entering()
    with tokenprune.prune(lm, {"prune": [tower(IntoFirst(), "nearest", name="fixed", layer=1, keep=2)]}):
        merged = entering()
    if family == "llava":
        expected = torch.stack([whole[0], torch.cat([whole[1:2], whole[3:]]).mean(0), whole[2]])
    else:
        units = whole.view(-1, 4, whole.shape[-1])
        expected = torch.stack([torch.cat([units[:1], units[2:]]).mean(0), units[1]]).flatten(0, 1)
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_proportional_attention_counts_tokens_as_often_as_they_stand_for(attention: str) -> None:
    """Two equal rows merged and counted twice attend like two rows."""

    @dataclass(frozen=True)
    class Twins(VisionScorer):
        proportional: bool = True

        def rank(self, pictures: Pictures) -> Ranking:
            scores = (pictures.tokens % 2 == 0).float()
            return Ranking(scores, pictures.tokens - pictures.tokens % 2)

    lm, seen = model("llava", attention), []
    layers = lm.model.vision_tower.encoder.layers

    def twin(module: Any, args: Any) -> Any:
        hidden = args[0].clone()
        hidden[:, 2::2] = hidden[:, 1::2]  # a CLS row, then pairs
        return (hidden, *args[1:])

    def run(*passes: Any) -> torch.Tensor:
        seen.clear()
        hooks = [
            layers[0].register_forward_pre_hook(twin),
            layers[1].register_forward_hook(lambda m, args, output: seen.append(output)),
        ]
        try:
            with torch.no_grad():
                if passes:
                    with tokenprune.prune(lm, {"prune": list(passes)}):
                        lm(**inputs("llava", BATCHES["padded"]))
                else:
                    lm(**inputs("llava", BATCHES["padded"]))
        finally:
            for hook in hooks:
                hook.remove()
        return seen[0]

    whole = run()[:, [0, *range(1, 17, 2)]]
    plan = {"name": "fixed", "layer": 1, "keep": 8}
    torch.testing.assert_close(run(tower(Twins(), "nearest", **plan)), whole, rtol=1e-4, atol=1e-4)
    plain = run(tower(Twins(proportional=False), "nearest", **plan))
    assert not torch.allclose(plain, whole, rtol=1e-3, atol=1e-3)


def test_proportional_attention_is_refused_where_attention_takes_no_mask() -> None:
    recipe = {"prune": [tower({"name": "tome", "proportional": True}, "nearest", name="fixed", layer=1, keep=5)]}
    with (
        tokenprune.prune(model("qwen2_5_vl"), recipe),
        pytest.raises(UnsupportedModelError, match="proportional=false"),
    ):
        answer("qwen2_5_vl", "sdpa", BATCHES["one"])


# -- holes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generated", [False, True])
def test_a_hole_that_is_not_closed_names_the_pass(generated: bool, monkeypatch: Any) -> None:
    """A mutant adapter: it does not see the last visual column of each prompt."""

    def short(self: Any, config: Any, input_ids: torch.Tensor) -> torch.Tensor:
        visual = input_ids == config.image_token_id
        return visual & visual.roll(-1, 1)

    monkeypatch.setattr(LlavaAdapter, "visual", short)

    @dataclass(frozen=True)
    class First(VisionScorer):
        def rank(self, pictures: Pictures) -> Ranking:
            return Ranking(-pictures.tokens.float())

    recipe = {"prune": [tower(First(), name="fixed", layer=1, keep=3)]}
    lm, given = model("llava"), inputs("llava", RAGGED)
    with tokenprune.prune(lm, recipe), pytest.raises(PromptError, match=r"no holes of prune\.0 \(tower: vision\)"):
        lm.generate(**given, max_new_tokens=2) if generated else lm(**given)


def test_an_adapter_that_sees_no_picture_at_all_is_caught_too(monkeypatch: Any) -> None:
    monkeypatch.setattr(LlavaAdapter, "visual", lambda self, config, ids: torch.zeros_like(ids, dtype=torch.bool))
    recipe = {"prune": [tower(name="fixed", layer=1, keep=4)]}
    with tokenprune.prune(model("llava"), recipe), pytest.raises(PromptError, match=r"prune\.0"):
        model("llava")(**inputs("llava", RAGGED))


def test_pictures_encoded_outside_of_the_block_are_refused() -> None:
    lm, given = model("llava"), inputs("llava", BATCHES["one"])
    with torch.no_grad():
        encoded = lm.get_image_features(given.pop("pixel_values"))
        with (
            tokenprune.prune(lm, {"prune": [tower(name="fixed", layer=1, keep=4)]}),
            pytest.raises(PromptError, match="encoded outside of the pruning"),
        ):
            lm(**given, mm_encoder_outputs={"image": encoded})


def test_nothing_stays_behind() -> None:
    lm = model("llava")
    answer("llava", "sdpa", RAGGED)  # transformers hooks a model when it runs for the first time
    before = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in lm.named_modules()}
    with tokenprune.prune(lm, {"prune": RECIPES["two-sided"]}):
        answer("llava", "sdpa", RAGGED)
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in lm.named_modules()} == before
    assert torch.equal(logits(answer("llava", "sdpa", RAGGED)), unpruned("llava", "sdpa", tuple(RAGGED)))


def test_an_encoding_that_fails_leaves_no_hook_behind() -> None:
    @dataclass(frozen=True)
    class Fails(VisionScorer):
        def rank(self, pictures: Pictures) -> Ranking:
            raise RuntimeError("no")

    lm = model("llava")
    with tokenprune.prune(lm, {"prune": [tower(Fails(), name="fixed", layer=1, keep=4)]}):
        with pytest.raises(ScorerError, match=r"inside the vision tower at layer 1 failed with RuntimeError: no"):
            answer("llava", "sdpa", RAGGED)
        assert not any(block._forward_pre_hooks for block in lm.model.vision_tower.encoder.layers)


# -- facts of one encoding -----------------------------------------------------------------------------------------

SMALL, LARGE = (1, 4, 4), (1, 8, 8)
FEW = [tower(name="fixed", layer=1, keep=4)]
"""Of LARGE, 16 tokens, 4 are left; SMALL has no more than these."""


def pictured(*grids: tuple[int, int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt for Qwen, which shows pictures of these sizes; and the pictures."""
    words, pixels = [9], []
    for t, h, w in grids:
        words += [5] * (t * h * w // 4) + [9]
        pixels.append(torch.randn(t * h * w, 96, generator=torch.Generator().manual_seed(w)) + h)
    prompt = {"input_ids": torch.tensor([[*words, 9]])}
    return prompt, {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}


def encode(*grids: tuple[int, int, int]) -> Any:
    with torch.no_grad():
        return model("qwen2_5_vl").model.get_image_features(**pictured(*grids)[1])


@torch.no_grad()
def shows(encoded: Any, *grids: tuple[int, int, int]) -> torch.Tensor:
    """The last word's logits of a prompt with pictures that were encoded before."""
    prompt = pictured(*grids)[0]
    return model("qwen2_5_vl")(**prompt, mm_encoder_outputs={"image": encoded}).logits[:, -1]


def elsewhere(step: Any) -> Any:
    """In another thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(step()))
    thread.start()
    thread.join()
    return found[0]


def here(step: Any) -> Any:
    return step()


OUTSIDE = "encoded outside of the pruning block.*hold on to what get_image_features returns"


@pytest.mark.parametrize("where", [here, elsewhere])
def test_a_small_picture_says_nothing_of_others(where: Any) -> None:
    """It lost nothing, so its prompt has no holes. Others without holes were encoded elsewhere."""
    stranger = encode(LARGE)
    with tokenprune.prune(model("qwen2_5_vl"), {"prune": FEW}) as pruning:
        small = where(lambda: encode(SMALL))
        where(lambda: shows(small, SMALL))
        assert pruning.state is not None
        assert not pruning.state.views
        for _ in range(2):
            with pytest.raises(PromptError, match=OUTSIDE):
                shows(stranger, LARGE)
        shows(small, SMALL)
        del small
        with pytest.raises(PromptError, match=OUTSIDE):
            shows(stranger, LARGE)


@pytest.mark.parametrize("inside", [SMALL, LARGE])
@pytest.mark.parametrize("order", [1, -1])
def test_one_picture_of_two_from_outside_is_refused(inside: tuple[int, int, int], order: int) -> None:
    stranger = encode(LARGE).pooler_output[0]
    with tokenprune.prune(model("qwen2_5_vl"), {"prune": FEW}):
        mixed = encode(inside)
        mixed.pooler_output = [mixed.pooler_output[0], stranger][::order]
        with pytest.raises(PromptError, match=OUTSIDE):
            shows(mixed, *[inside, LARGE][::order])


def test_pictures_encoded_ahead_reach_every_prompt_that_shows_them() -> None:
    """Small and large, from several encodings, in another order, twice, by other threads."""
    lm = model("qwen2_5_vl")
    with tokenprune.prune(lm, {"prune": FEW}) as pruning:
        with torch.no_grad():
            prompt, pictures = pictured(SMALL, LARGE)
            expected = lm(**prompt, **pictures).logits[:, -1]
        both, small, large = encode(SMALL, LARGE), encode(SMALL), elsewhere(lambda: encode(LARGE))
        for where in (here, elsewhere, here):
            assert torch.equal(where(lambda: shows(both, SMALL, LARGE)), expected)
            assert pruning.state is not None
            assert pruning.state.count_after_vision == (8,)
        joined = replace(both, pooler_output=[*large.pooler_output, *small.pooler_output])
        assert torch.isfinite(shows(joined, LARGE, SMALL)).all()
        assert pruning.state.count_after_vision == (8,)
        shows(small, SMALL)
        assert not pruning.state.views
        words, _ = pictured(SMALL)
        for more in ({}, {"num_beams": 3}):
            lm.generate(
                **words, mm_encoder_outputs={"image": replace(small)}, max_new_tokens=2, do_sample=False, **more
            )
        shows(large, LARGE)
        assert pruning.state.count_after_vision == (4,)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_that_lose_nothing_are_known_however_they_are_packed(family: str) -> None:
    lm, given = model(family), inputs(family, [*RAGGED, *(MIXED if has_video(family) else [])])
    with tokenprune.prune(lm, {"prune": [tower(name="fixed", layer=1, keep=1.0)]}) as pruning, torch.no_grad():
        lm(**given)
        lm.generate(**given, max_new_tokens=2, do_sample=False, num_beams=2)
        assert pruning.state is not None
        assert not pruning.state.views
        assert any(pruning.state.counts)


def test_gradients_flow_through_pictures_that_lose_nothing() -> None:
    lm, (prompt, pictures) = model("qwen2_5_vl"), pictured(SMALL, LARGE)
    pictures["pixel_values"].requires_grad_()
    with tokenprune.prune(lm, {"prune": FEW}):
        loss = lm(**prompt, **pictures).logits[:, -1].sum()
        (gradient,) = torch.autograd.grad(loss, pictures["pixel_values"])
    assert torch.isfinite(gradient).all()
    assert gradient[: 4 * 4].any()


@pytest.mark.parametrize("again", [False, True])
def test_holes_of_another_block_are_refused(again: bool) -> None:
    """Whether or not this block has encoded pictures of its own."""
    with tokenprune.prune(model("qwen2_5_vl"), {"prune": FEW}):
        earlier = encode(LARGE)
    with tokenprune.prune(model("qwen2_5_vl"), {"prune": FEW}):
        own = encode(LARGE) if again else None
        with pytest.raises(PromptError, match=OUTSIDE):
            shows(earlier, LARGE)
        if again:
            shows(own, LARGE)


def test_two_passes_may_meet_at_one_layer_in_different_encodings() -> None:
    """What dropped a token is said by its hole: not by what another encoding did at that layer."""

    @dataclass(frozen=True)
    class Early(tokenprune.Scheduler):
        def plan(self, shape: Any) -> dict[int, int]:
            return {1 if shape.visual < 20 else 2: 3 * shape.visual // 4}

    @dataclass(frozen=True)
    class Late(tokenprune.Scheduler):
        def plan(self, shape: Any) -> dict[int, int]:
            return {2 if shape.visual < 20 else 3: shape.visual // 2}

    steps = [tower(Salient()), tower("random")]
    recipe = {"prune": [{**step, "schedule": plan} for step, plan in zip(steps, (Early(), Late()), strict=True)]}
    with tokenprune.prune(model("qwen2_5_vl"), recipe) as pruning:
        held = {grid: encode(grid) for grid in (LARGE, (1, 8, 12), LARGE)}
        for grid, layers in ((LARGE, (1, 2)), ((1, 8, 12), (2, 3)), (LARGE, (1, 2))):
            shows(held[grid], grid)
            assert pruning.state is not None
            found = {stage.vision_layer: type(stage.step.scorer) for stage in pruning.state.stages.values()}
            assert found == dict(zip(layers, (Salient, type(load(recipe).passes[1].scorer)), strict=True))


def test_a_picture_of_nan_is_no_hole() -> None:
    prompt, pictures = pictured(LARGE)
    pictures["pixel_values"][8:12] = torch.nan
    with tokenprune.prune(model("qwen2_5_vl"), {"prune": FEW}), pytest.raises(PromptError, match="a picture holds NaN"):
        model("qwen2_5_vl")(**prompt, **pictures)


@dataclass(frozen=True)
class NanAt(VisionScorer):
    """Gives NaN for the pictures with so many tokens."""

    count: int

    def rank(self, pictures: Pictures) -> Ranking:
        scores = pictures.tokens.float()
        if scores.shape[1] == self.count:
            scores[0, 1] = torch.nan
        return Ranking(scores)


@pytest.mark.parametrize("where", [here, elsewhere])
def test_nan_is_blamed_on_the_prompt_that_shows_it(where: Any) -> None:
    """An encoding whose prompt comes late, twice or never."""
    wide = (1, 8, 12)
    recipe = {"prune": [tower(NanAt(24), name="fixed", layer=1, keep=4)]}
    with tokenprune.prune(model("qwen2_5_vl"), recipe):
        bad, good = where(lambda: encode(wide)), encode(LARGE)
        where(lambda: encode(wide))  # nobody shows it
        for _ in range(2):
            assert torch.isfinite(where(lambda: shows(good, LARGE))).all()
            assert torch.isfinite(shows(good, LARGE)).all()
            with pytest.raises(ScorerError, match=r"NanAt.* inside the vision tower at layer 1 gave NaN"):
                shows(bad, wide)
        both = encode(LARGE, wide)
        both.pooler_output = both.pooler_output[:1]
        assert close(shows(both, LARGE), shows(encode(LARGE), LARGE))  # the other picture of its encoding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_says_it_too(dtype: torch.dtype) -> None:
    lm, (prompt, pictures) = double_of(dtype), pictured(LARGE, SMALL)
    pictures["pixel_values"] = pictures["pixel_values"].to(dtype)
    recipe = {"prune": [tower(name="fixed", layer=1, keep=9), tower(NanAt(9), name="fixed", layer=2, keep=5)]}
    with tokenprune.prune(lm, {"prune": recipe["prune"][:1]}) as pruning:
        lm(**prompt, **pictures)
    assert pruning.state is not None
    assert pruning.state.count_after_vision == (9 + 4,)
    with (
        tokenprune.prune(lm, recipe),
        pytest.raises(ScorerError, match=r"NanAt.* inside the vision tower at layer 2 gave NaN"),
    ):
        lm(**prompt, **pictures)


def double_of(dtype: torch.dtype) -> Any:
    import copy

    return copy.deepcopy(model("qwen2_5_vl")).to(dtype)


@pytest.mark.parametrize("count", [0, 16])
def test_encodings_without_a_prompt_leave_nothing(count: int) -> None:
    """Of a hundred of them, with or without NaN, small and large."""
    recipe = {"prune": [tower(NanAt(count), name="fixed", layer=1, keep=4)]}

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with tokenprune.prune(model("qwen2_5_vl"), recipe):
        found = []
        for times in (2, 100):
            for _ in range(times):
                encode(SMALL, LARGE)
            found.append(tensors())
    assert found[0] == found[1]


def test_a_prefill_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read the holes; a second time only to look where pictures without holes come from."""
    waits: list[str] = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.__name__ in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "masked_select"):
                waits.append(func.__name__)
            return func(*args, **(kwargs or {}))

    read = VisionPruner.read

    def counted(*args: Any) -> Any:
        with Counting():
            return read(*args)

    monkeypatch.setattr(VisionPruner, "read", counted)
    with tokenprune.prune(model("qwen2_5_vl"), {"prune": FEW}):
        for grids, expected in (((LARGE, LARGE), ["tolist"]), ((LARGE, SMALL), ["tolist", "__bool__"])):
            waits.clear()
            held = encode(*grids)
            shows(held, *grids)
            assert waits == expected


# -- what is wrong is said -----------------------------------------------------------------------------------------


def in_place(tensor: str) -> Any:
    def rank(pictures: Pictures) -> Ranking:
        fine = pictures.tokens.float()
        shown = getattr(pictures, tensor)
        shown[:, ::2] = -5 * shown[:, ::2] + 7
        return Ranking(fine)

    return rank


def raising(error: type[BaseException], message: str) -> Any:
    def rank(pictures: Pictures) -> Ranking:
        raise error(message)

    return rank


def scored(change: Any) -> Any:
    return lambda pictures: Ranking(change(pictures.tokens.float()))


def merging(change: Any) -> Any:
    return lambda pictures: Ranking(pictures.tokens.float(), change(pictures.tokens))


RANKS: dict[str, Any] = {
    "good": scored(lambda fine: fine),
    "no ranking": lambda pictures: pictures.tokens.float(),
    "too few": scored(lambda fine: fine[:, 1:]),
    "a list": scored(lambda fine: fine.tolist()),
    "a NaN": scored(lambda fine: fine.index_fill(1, torch.tensor([2]), torch.nan)),
    "complex": scored(lambda fine: fine.to(torch.complex64)),
    "8-bit floats": scored(lambda fine: fine.to(torch.float8_e4m3fn)),
    "another device": scored(lambda fine: fine.to("meta")),
    "a dropped one": merging(torch.zeros_like),
    "one that is not there": merging(lambda tokens: tokens + 1),
    "real numbers": merging(lambda tokens: tokens.float()),
    "too few to merge into": merging(lambda tokens: tokens[:, 1:]),
    "changes sizes": in_place("sizes"),
    "changes rows": in_place("hidden"),
    "changes tokens": in_place("tokens"),
    "failure": raising(RuntimeError, "out of ideas"),
    "out of memory": raising(torch.OutOfMemoryError, "no room"),
    "prompt error": raising(PromptError, "no such prompt"),
    "no first block": lambda pictures: Ranking(replace(pictures, read=None).received),
    "no cls": lambda pictures: Ranking(replace(pictures, read=raising(ScorerError, "no CLS row")).keys),
}


@dataclass(frozen=True)
class Gives(VisionScorer):
    """Whatever it is told."""

    what: str

    def rank(self, pictures: Pictures) -> Ranking:
        given: Ranking = RANKS[self.what](pictures)
        return given


def giving(what: str) -> dict[str, Any]:
    return {"prune": [tower(Gives(what), "nearest", name="fixed", layer=1, keep=4)]}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("no ranking", "must give a Ranking, got Tensor"),
        ("too few", r"must give scores of every token: expected shape \(1, 16\), got \(1, 15\)"),
        ("a list", "must give scores of every token: expected a tensor, got list"),
        ("a NaN", "gave NaN: this pass's outputs and cache are not to be used"),
        ("complex", r"must give scores of every token: expected real numbers, got torch\.complex64"),
        ("8-bit floats", r"must give scores of every token: expected real numbers, got torch\.float8_e4m3fn"),
        ("another device", "must give scores of every token: expected them on cpu, got meta"),
        ("a dropped one", "merges tokens into some that it drops"),
        ("one that is not there", "merges tokens into some that it drops or that do not exist"),
        ("real numbers", r"must give tokens to merge into: expected torch\.int64, got torch\.float32"),
        ("too few to merge into", r"must give tokens to merge into: expected shape \(1, 16\), got \(1, 15\)"),
        ("changes sizes", "changed what it was shown in place"),
        ("changes rows", "changed what it was shown in place"),
        ("changes tokens", "changed what it was shown in place"),
        ("failure", "failed with RuntimeError: out of ideas"),
    ],
)
def test_a_scorer_that_breaks_its_contract_is_named(what: str, expected: str) -> None:
    """As a decoder scorer is (`test_faults.py`): the same guard. And the model works as before."""
    with tokenprune.prune(model("llava"), giving(what)):
        for _ in range(2):
            with pytest.raises(ScorerError, match=f"Gives.*inside the vision tower at layer 1 {expected}"):
                answer("llava", "sdpa", BATCHES["one"])
    found = logits(answer("llava", "sdpa", RAGGED))
    assert torch.equal(found, unpruned("llava", "sdpa", tuple(RAGGED)))


@pytest.mark.parametrize("what", ["changes sizes", "changes rows", "changes tokens"])
def test_in_inference_mode_scorers_change_copies(what: str) -> None:
    """There torch counts no versions, so a change cannot be seen: it must do nothing, here to sizes and to merging."""
    found = []
    for scorer in ("good", what):
        recipe = {"prune": [*giving(scorer)["prune"], tower("tome", "nearest", name="fixed", layer=2, keep=2)]}
        with torch.inference_mode(), tokenprune.prune(model("llava"), recipe):
            found.append(logits(answer("llava", "sdpa", RAGGED)))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("prompt error", PromptError, "no such prompt"),
        ("no first block", ScorerError, "before the first block of the tower there are no received"),
        ("no cls", ScorerError, "no CLS row"),
    ],
)
def test_the_engines_own_errors_pass_as_they_are(what: str, error: type[TokenpruneError], message: str) -> None:
    with tokenprune.prune(model("llava"), giving(what)), pytest.raises(error) as caught:
        answer("llava", "sdpa", BATCHES["one"])
    assert str(caught.value).startswith(message)
    assert passed_as_it_is(caught.value, "scorer 'Gives' of module test_vision inside the vision tower at layer 1")


def test_who_runs_out_of_memory_is_not_blamed() -> None:
    lm, recipe = model("llava"), giving("out of memory")
    with tokenprune.prune(lm, recipe), pytest.raises(torch.OutOfMemoryError, match=r"^no room$"):
        answer("llava", "sdpa", BATCHES["one"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64], ids=str)
def test_scores_may_be_any_real_numbers(dtype: torch.dtype) -> None:
    """The same order in any type of numbers."""

    @dataclass(frozen=True)
    class Ranked(VisionScorer):
        dtype: torch.dtype

        def rank(self, pictures: Pictures) -> Ranking:
            return Ranking((pictures.tokens % 7 > 3).to(self.dtype))

    found = []
    for kind in (torch.float32, dtype):
        with tokenprune.prune(model("llava"), {"prune": [tower(Ranked(kind), "nearest", **FIXED)]}):
            found.append(logits(answer("llava", "sdpa", RAGGED)))
    assert torch.equal(*found)


FIXED = {"name": "fixed", "layer": 1, "keep": 4}


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([tower("entropy", **FIXED)], "Entropy ranks tokens of a prompt"),
        ([{"scorer": "tome", "schedule": FIXED}], "ToMe ranks pictures inside the vision tower"),
        ([tower("tome", "recycle", **FIXED)], "inside the vision tower tokens are merged by `nearest`"),
        ([tower(name="ecl", keep=4)], "the Entropy Collapse Layer is one of the decoder"),
        ([{"scorer": "entropy", "schedule": FIXED}, tower(**FIXED)], "passes with tower: vision come first"),
        ([tower(**FIXED), {"scorer": "visionzip", "schedule": {**FIXED, "layer": 0}}], "prune.1: it reads the vision"),
        ([{**tower(**FIXED), "tower": "audio"}], "prune.0.tower: expected vision or null"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(passes: list[Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(expected)):
        load({"prune": passes})


def test_a_layer_that_the_tower_does_not_have() -> None:
    with (
        pytest.raises(LayerError, match=r"inside the vision tower .*layer 3 does not exist: this model has 3 blocks"),
        tokenprune.prune(model("llava"), {"prune": [tower(name="fixed", layer=3, keep=4)]}),
    ):
        pass


def test_features_of_several_blocks_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(model("llava").config, "vision_feature_layer", [-1, -2])
    with (
        pytest.raises(UnsupportedModelError, match="the projector gets the rows of several blocks"),
        tokenprune.prune(model("llava"), {"prune": [tower(**FIXED)]}),
    ):
        pass


def test_another_feature_layer_than_the_configs_is_refused() -> None:
    recipe = {"prune": [tower(name="fixed", layer=1, keep=4)]}
    given = inputs("llava", BATCHES["one"])
    with tokenprune.prune(model("llava"), recipe), pytest.raises(PromptError, match="leave vision_feature_layer"):
        model("llava").get_image_features(given["pixel_values"], vision_feature_layer=1)


def test_an_unknown_collapse_layer_is_not_measured_on_thinned_pictures(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path))
    recipe = {"prune": [tower(**FIXED), {"scorer": "entropy", "schedule": {"name": "ecl", "keep": 2}}]}
    with tokenprune.prune(model("llava"), recipe), pytest.raises(LayerError, match="tokenprune calibrate"):
        answer("llava", "sdpa", BATCHES["one"])


def test_an_adapter_without_a_tower_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(LlavaAdapter, "vision_adapter", lambda self: None)
    with (
        pytest.raises(UnsupportedModelError, match="does not know that tower"),
        tokenprune.prune(model("llava"), {"prune": [tower(**FIXED)]}),
    ):
        pass


# -- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, "1/3", 0.2])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["salient", "stages", "two-sided", "tail"])
def test_a_budget_is_met_by_every_prompt(family: str, recipe: str, share: Any) -> None:
    """A share of the visual tokens, as a mean over the decoder blocks, to half a token for each picture."""
    tail = [tower(Salient(), **MEAN), {"scorer": "random", "schedule": {"name": "fixed", "layer": 4, "keep": 0.5}}]
    passes = {**RECIPES, "tail": tail}[recipe]
    if (family, recipe, share) == ("llava_next", "tail", 0.2):
        share = 0.25  # newline tokens, which no tower sees, take too much of less
    with tokenprune.prune(model(family), {"prune": passes}, budget=share) as pruning:
        answer(family, "sdpa", RAGGED)
    state, report = pruning.state, pruning.report()
    assert state is not None
    from fractions import Fraction

    for count, mean in zip(state.counts, report.average, strict=True):
        pictures = 5 if family == "llava_next" else 2
        slack = pictures * (1 if recipe in ("salient", "stages") else 0.5) + (4 if family == "llava_next" else 0)
        assert abs(mean - float(Fraction(str(share)) * count)) <= slack
    assert any(state.counts)


def test_a_budget_in_tokens_is_refused() -> None:
    with (
        pytest.raises(BudgetError, match="give its budget as a share"),
        tokenprune.prune(model("llava"), {"prune": RECIPES["stages"]}, budget=8),
    ):
        pass


# -- reports and pictures ------------------------------------------------------------------------------------------


def test_reports_and_overlays_show_every_stage() -> None:
    from PIL import Image

    recipe = {"prune": [tower(**MEAN), {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 3}}]}
    with tokenprune.prune(model("llava"), recipe) as pruning:
        answer("llava", "sdpa", BATCHES["one"])
    report = pruning.report()
    assert [(stage.layer, stage.kept, stage.total) for stage in report.stages] == [
        (-2, [11], [16]),
        (-1, [6], [16]),
        (2, [3], [16]),
    ]
    assert "tower layer 1" in str(report)
    assert "tower layer 2" in str(report)
    assert report.average == [(2 * 6 + (DEPTH - 2) * 3) / DEPTH]
    picture = Image.new("RGB", (32, 32), "white")
    for stage, kept in ((-2, 11), (-1, 6), (2, 3)):
        drawn = pruning.overlay(picture, stage=stage).convert("L").resize((4, 4), Image.Resampling.BOX)
        bright = sorted(drawn.getpixel((i % 4, i // 4)) for i in range(16))
        assert bright[16 - kept] > bright[16 - kept - 1]
    with pytest.raises(tokenprune.TokenpruneError, match="scores of stages inside the vision tower are not kept"):
        pruning.overlay(picture, stage=-1, scores=True)


@dataclass(frozen=True)
class At(VisionScorer):
    """The token in one place of each picture."""

    row: int
    column: int

    def rank(self, pictures: Pictures) -> Ranking:
        found = (pictures.places == torch.tensor([self.row, self.column])).all(-1)
        return Ranking(found.float())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_token_that_a_place_names_is_drawn_there(family: str) -> None:
    """One bright patch, the one that stays; Qwen's tower counts in windows."""
    from PIL import Image

    given = inputs(family, BATCHES["one"])
    rows, columns = (4, 4) if family == "llava" else [int(n) // 2 for n in given["image_grid_thw"][0, 1:]]
    for row, column in ((0, 0), (1, 3), (3, 2), (2, columns - 1)):
        recipe = {"prune": [tower(At(row, column), name="fixed", layer=1, keep=1)]}
        with tokenprune.prune(model(family), recipe) as pruning:
            answer(family, "sdpa", BATCHES["one"])
        drawn = pruning.overlay(Image.new("RGB", (8 * columns, 8 * rows), "white"), given).convert("L")
        small = drawn.resize((columns, rows), Image.Resampling.BOX)
        brightest = max(range(rows * columns), key=lambda i: small.getpixel((i % columns, i // columns)))
        assert brightest == row * columns + column


@pytest.mark.parametrize("name", ["keys", "received", "cls_attention", "salience"])
def test_states_before_the_first_block_are_refused(name: str) -> None:
    pictures = replace(Pictures.of(2, torch.randn(1, 4, 3)), read=None)
    with pytest.raises(ScorerError, match="prune at layer 1 or later"):
        getattr(pictures, name)


def test_qwen_has_no_cls_row() -> None:
    @dataclass(frozen=True)
    class Cls(VisionScorer):
        def rank(self, pictures: Pictures) -> Ranking:
            return Ranking(pictures.cls_attention)

    with (
        tokenprune.prune(model("qwen2_5_vl"), {"prune": [tower(Cls(), **FIXED)]}),
        pytest.raises(ScorerError, match="this tower has no CLS row"),
    ):
        answer("qwen2_5_vl", "sdpa", BATCHES["one"])


def test_the_tower_adapter_knows_where_states_lie() -> None:
    assert isinstance(LlavaAdapter().vision_adapter(), ClipTower)
