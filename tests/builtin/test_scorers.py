"""Scorers against slow references: the paper's formulas in float64, the model's own attention, greedy loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, MIXED, ONE, RAGGED, Prompt, has_video, inputs, model
from tensors import greedy_max_min, lattice, rand

import tokenprune
from tokenprune import Scorer, Seen
from tokenprune.builtin.schedules import Fixed
from tokenprune.builtin.scorers.attention import Attention
from tokenprune.builtin.scorers.diversity import Diversity
from tokenprune.builtin.scorers.entropy import Entropy
from tokenprune.builtin.scorers.random import Random
from tokenprune.errors import ScorerError
from tokenprune.registry import registry


def best(scores: torch.Tensor, keep: int) -> list[int]:
    """Places of the highest scores, ties to the lower place: the engine's rule."""
    return sorted(scores.argsort(descending=True, stable=True)[:keep].tolist())


# -- entropy ---------------------------------------------------------------------------------------------------------


def matrix_entropies(states: torch.Tensor, alpha: float = 1.0, top_k: int | None = None) -> np.ndarray:
    """Eq. 7-9 token by token: `H n dh` -> n, with the explicit dh x dh covariance, in float64."""
    found = []
    for heads in states.double().numpy().transpose(1, 0, 2):
        sigma = np.zeros((heads.shape[1], heads.shape[1]))
        for v in heads - heads.mean(0):
            if v @ v > 1e-12 * (heads**2).sum():  # else the head is the mean up to float32 round-off
                sigma += np.outer(v, v) / (v @ v)
        s = np.linalg.eigvalsh(sigma / len(heads))
        s = s[s > 1e-12][-top_k if top_k else None :]
        found.append(-(s * np.log(s)).sum() if alpha == 1 else np.log((s**alpha).sum() or 1) / (1 - alpha))
    return np.array(found)


def released(states: torch.Tensor) -> np.ndarray:
    """The authors' released code: centred, not scaled, float64, eigenvalues at least 1e-10, divided by log H."""
    m = states.double().transpose(0, 1)
    m = m - m.mean(1, keepdim=True)
    s = torch.linalg.eigvalsh(m @ m.mT / m.shape[1]).clamp_min(1e-10)
    return (-(s * s.log()).sum(-1) / math.log(m.shape[1])).numpy()


SIZES = [(8, 12, 32), (32, 6, 8), (4, 10, 4), (2, 5, 16), (3, 7, 1)]  # H n dh: H < dh, H > dh, H = dh


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_entropy_is_equations_7_to_14_in_float64(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    states = rand(*size).to(dtype)
    found = Entropy().score(Seen.of(keep=1, queries=states))
    np.testing.assert_allclose(found, matrix_entropies(states), atol=2e-5)


def test_entropy_of_key_states_uses_the_kv_heads() -> None:
    """GQA: eight query heads, two key heads."""
    seen = Seen.of(keep=1, queries=rand(8, 9, 16), keys=rand(2, 9, 16, seed=1))
    by_key, by_query = Entropy(states="key").score(seen), Entropy().score(seen)
    np.testing.assert_allclose(by_key, matrix_entropies(rand(2, 9, 16, seed=1)), atol=2e-5)
    np.testing.assert_allclose(by_query, matrix_entropies(rand(8, 9, 16)), atol=2e-5)
    assert not torch.allclose(by_key, by_query)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("size", SIZES)
def test_entropy_of_order_alpha_is_equation_2(size: tuple[int, int, int], alpha: float) -> None:
    found = Entropy(alpha=alpha).score(Seen.of(keep=1, queries=rand(*size)))
    np.testing.assert_allclose(found, matrix_entropies(rand(*size), alpha), atol=5e-5)


@pytest.mark.parametrize("normalize", ["rows", "none"])
@pytest.mark.parametrize("size", SIZES)
def test_alpha_two_needs_no_eigenvalues(size: tuple[int, int, int], normalize: Any) -> None:
    """The Frobenius norm gives what the eigenvalues give."""
    seen = Seen.of(keep=1, queries=rand(*size))
    short = Entropy(alpha=2.0, normalize=normalize).score(seen)
    by_eigenvalues = Entropy(alpha=2.0, normalize=normalize, top_k=99).score(seen)
    torch.testing.assert_close(short, by_eigenvalues, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3, 99])
def test_entropy_of_the_top_k_eigenvalues_is_equation_6(top_k: int) -> None:
    found = Entropy(top_k=top_k).score(Seen.of(keep=1, queries=rand(8, 12, 32)))
    np.testing.assert_allclose(found, matrix_entropies(rand(8, 12, 32), top_k=top_k), atol=2e-5)


@pytest.mark.parametrize("size", SIZES[:4])
def test_normalize_none_ranks_like_the_released_code(size: tuple[int, int, int]) -> None:
    states = rand(*size) * torch.linspace(0.2, 3, size[1])[:, None]
    found = Entropy(normalize="none").score(Seen.of(keep=1, queries=states))
    assert found.argsort().tolist() == released(states).argsort().tolist()
    np.testing.assert_allclose(found, released(states) * math.log(size[0]), rtol=1e-4, atol=1e-4)
    assert found.argsort().tolist() != matrix_entropies(states).argsort().tolist()


@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_is_the_same_before_and_after_rope(family: str, alpha: float) -> None:
    """RoPE turns all heads of a token alike; the model's own tables and the adapter's own rotation."""
    lm, states = model(family), rand(4, 9, 16)
    adapter = registry().adapter(lm.config)
    positions = torch.tensor([0, 1, 2, 5, 8, 13, 40, 41, 300])[None]
    positions = positions.expand(3, 1, -1) if family == "qwen2_5_vl" else positions
    tables = lm.model.language_model.rotary_emb(states, position_ids=positions)
    rotated = adapter.attention(lm.model.language_model.layers[0]).rotate(states, tuple(table[0] for table in tables))
    before, after = (Entropy(alpha=alpha).score(Seen.of(keep=1, queries=q)) for q in (states, rotated))
    assert not torch.allclose(rotated, states, atol=0.1)
    torch.testing.assert_close(after, before, atol=2e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("normalize", ["rows", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 3, 7, 32])
def test_identical_heads_say_one_thing(heads: int, dtype: torch.dtype, normalize: Any, alpha: float) -> None:
    """No direction is left after centring: zero, never NaN and never amplified round-off."""
    states = rand(1, 6, 16).to(dtype).expand(heads, 6, 16).clone()
    states[:, 0] = 0
    score = Entropy(normalize=normalize, alpha=alpha).score(Seen.of(keep=1, queries=states))
    assert score.shape == (6,)
    if normalize == "rows":
        assert score.eq(0).all()
    else:
        assert not score.isnan().any()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_head_equal_to_the_mean_adds_nothing(alpha: float) -> None:
    """A zero row: the covariance of the other heads, still divided by H."""
    states = rand(4, 5, 16)
    states[3] = states[:3].mean(0)
    states[:, 4] = torch.tensor([1.0, -1.0, 0.0, 0.0])[:, None]  # two rows are zero exactly
    found = Entropy(alpha=alpha).score(Seen.of(keep=1, queries=states))
    assert found.isfinite().all()
    np.testing.assert_allclose(found, matrix_entropies(states, alpha), atol=5e-5)


def test_the_other_end_is_the_reverse_order() -> None:
    states = rand(8, 20, 16)
    high, low = (
        Entropy(normalize="none", prefer=prefer).score(Seen.of(keep=1, queries=states)) for prefer in ("high", "low")
    )
    assert torch.equal(high.argsort(descending=True), low.argsort())
    assert high.argmax() == low.argmin() != low.argmax()


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_entropy_of_the_paper_ignores_the_length_of_states(scale: float) -> None:
    seen, scaled = (Seen.of(keep=1, queries=rand(8, 5, 16) * factor) for factor in (1, scale))
    torch.testing.assert_close(Entropy().score(scaled), Entropy().score(seen), atol=1e-5, rtol=0)


def test_broken_states_are_never_scored_as_if_they_were_numbers() -> None:
    """NaN in (a hole that leaked, an overflow) must not come out as a finite score."""
    states = rand(4, 5, 16)
    states[1, 2, 3] = float("nan")
    try:
        score = Entropy().score(Seen.of(keep=1, queries=states))
    except (RuntimeError, ScorerError):  # eigvalsh refuses NaN: loud as well
        score = torch.full((5,), float("nan"))
    assert score[2].isnan()


@pytest.mark.parametrize(
    "fields", [{"alpha": 0.0}, {"alpha": -1.0}, {"alpha": math.nan}, {"alpha": math.inf}, {"top_k": 0}, {"top_k": -2}]
)
def test_entropy_settings_without_meaning_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must"):
        Entropy(**fields)


# -- attention -------------------------------------------------------------------------------------------------------

QUERIES: dict[str, Any] = {"last": "last", "text": "text", "columns": (0, 5, -3), "first": (0,)}
BLOCKS = ("previous", "next")


@dataclass(frozen=True, eq=False)
class Spy(Scorer):
    """Writes down every attention it can ask for."""

    into: list[tuple[Seen, dict[tuple[str, str], torch.Tensor]]]

    def score(self, seen: Seen) -> torch.Tensor:
        self.into.append((seen, {(q, b): seen.attention(QUERIES[q], b) for q in QUERIES for b in BLOCKS}))
        return seen.attention().mean((0, 1))


def a_pass(scorer: Scorer, layer: int, keep: int, positions: str = "original") -> dict[str, Any]:
    return {"scorer": scorer, "schedule": Fixed(layer=layer, keep=keep), "positions": positions}


def ragged(family: str) -> Sequence[Prompt]:
    return MIXED if has_video(family) else RAGGED


def asked(query: str, columns: list[int], visual: list[int]) -> list[int]:
    """The query columns meant by `query`, among the real columns of a prompt."""
    if query == "text":
        return [c for c in columns if c > max(visual)]
    return [columns[c] for c in ((-1,) if query == "last" else QUERIES[query])]


@cache
def eager_weights(family: str) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model(family, "eager")(**inputs(family, ragged(family)), output_attentions=True).attentions


@cache
def recorded(family: str, layer: int) -> list[tuple[Seen, dict[tuple[str, str], torch.Tensor]]]:
    """What a scorer at `layer` of the sdpa model was shown, per prompt with pictures."""
    into: list[Any] = []
    recipe = {"prune": [a_pass(Spy(into), layer, 3)]}
    with torch.no_grad(), tokenprune.prune(model(family), recipe):
        model(family)(**inputs(family, ragged(family)))
    return into


def real_columns(family: str) -> list[tuple[int, list[int], list[int]]]:
    """Row, columns that are no padding, columns of visual tokens; rows without pictures left out."""
    given = inputs(family, ragged(family))
    marks = registry().adapter(model(family).config).visual(model(family).config, given["input_ids"])
    rows = [
        (row, given["attention_mask"][row].nonzero()[:, 0].tolist(), marks[row].nonzero()[:, 0].tolist())
        for row in range(len(marks))
    ]
    return [(row, columns, visual) for row, columns, visual in rows if visual]


@pytest.mark.parametrize("layer", [1, 3, 5])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_rows_are_the_models_own_eager_weights(family: str, query: str, block: str, layer: int) -> None:
    """Of block L-1 (`previous`) or block L (`next`), in a ragged left-padded batch of an sdpa model."""
    weights = eager_weights(family)[layer - 1 if block == "previous" else layer]
    shown = recorded(family, layer)
    prompts = real_columns(family)
    assert len(shown) == len(prompts) >= 2
    for (row, columns, visual), (_, found) in zip(prompts, shown, strict=True):
        expected = weights[row][:, asked(query, columns, visual)][..., visual]
        torch.testing.assert_close(found[query, block], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_next_attention_of_the_projector_rows_is_that_of_the_first_block(family: str) -> None:
    """Layer 0 has no previous block, and says so."""
    scorer, given = Attention(block="next"), inputs(family, ragged(family))
    with torch.no_grad(), tokenprune.prune(model(family), {"prune": [a_pass(scorer, 0, 3)]}) as pruning:
        model(family)(**given)
    assert pruning.state is not None
    view = pruning.state.views[0]
    for row, columns, visual in real_columns(family):
        scores = eager_weights(family)[0][row][:, columns[-1]][..., visual].mean(0)
        kept = set(view.index[row][view.valid[row]].tolist()) & set(visual)
        assert sorted(kept) == [visual[place] for place in best(scores, 3)]
    with (
        pytest.raises(ScorerError, match="layer 0 there is no previous block"),
        torch.no_grad(),
        tokenprune.prune(model(family), {"prune": [a_pass(Attention(), 0, 3)]}),
    ):
        model(family)(**given)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_scorer_keeps_the_columns_with_most_eager_weight(family: str, block: Any, query: str) -> None:
    scorer, given = Attention(queries=QUERIES[query], block=block), inputs(family, ragged(family))
    with torch.no_grad(), tokenprune.prune(model(family), {"prune": [a_pass(scorer, 2, 4)]}) as pruning:
        model(family)(**given)
    assert pruning.state is not None
    view, weights = pruning.state.views[2], eager_weights(family)[1 if block == "previous" else 2]
    for row, columns, visual in real_columns(family):
        scores = weights[row][:, asked(query, columns, visual)][..., visual].mean((0, 1))
        kept = set(view.index[row][view.valid[row]].tolist()) & set(visual)
        if query != "first":  # a column before the pictures attends to none of them: all scores are zero
            assert sorted(kept) == [visual[place] for place in best(scores, 4)]
        else:
            assert sorted(kept) == visual[:4]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_after_an_earlier_stage_is_that_of_the_pruned_model(family: str, positions: str) -> None:
    """Layer 4, after tokens went at layer 2: the eager weights of the same model pruned at layer 2 only."""
    given = inputs(family, ragged(family))
    first = a_pass(Diversity(), 2, 9, positions)
    with torch.no_grad(), tokenprune.prune(model(family, "eager"), {"prune": [first]}) as once:
        weights = model(family, "eager")(**given, output_attentions=True).attentions
    into: list[Any] = []
    with torch.no_grad(), tokenprune.prune(model(family), {"prune": [first, a_pass(Spy(into), 4, 3, positions)]}):
        model(family)(**given)
    assert once.state is not None
    view = once.state.views[2]
    for (row, _, before), (seen, found) in zip(real_columns(family), into, strict=True):
        places = view.valid[row].nonzero()[:, 0].tolist()
        visual = [place for place in places if int(view.index[row, place]) in before]
        assert len(visual) == 9
        assert seen.columns.tolist() == [
            int(view.index[row, place]) - given["attention_mask"][row].tolist().count(0) for place in visual
        ]
        for (query, block), got in found.items():
            rows = asked(query, places, visual)
            expected = weights[3 if block == "previous" else 4][row][:, rows][..., visual]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@dataclass(frozen=True, eq=False)
class Reader(Scorer):
    """Writes down what it is shown and the states that are read lazily; keeps the first tokens."""

    into: list[tuple[Seen, dict[str, torch.Tensor]]]

    def score(self, seen: Seen) -> torch.Tensor:
        names = ("embeddings", "shown", "normed", "words", *(["rotated_keys"] if seen.layer else []))
        self.into.append((seen, {name: getattr(seen, name) for name in names}))
        return -torch.arange(len(seen.visual)).float()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_what_entered_the_first_block(family: str, mode: Any) -> None:
    """Of the whole prompt without its pads, at every stage, dropped tokens included; unpruned, seen by a plain hook."""
    into: list[Any] = []
    recipe = {"prune": [a_pass(Reader(into), layer, keep) for layer, keep in ((0, 12), (2, 7), (4, 3))]}
    lm, given, entered = model(family), inputs(family, ragged(family)), []
    with mode(), tokenprune.prune(lm, recipe) as pruning:
        lm(**given)
    handle = lm.model.language_model.layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with torch.no_grad():
        lm(**given)
    handle.remove()
    assert pruning.state is not None
    rows = real_columns(family)
    assert len(into) == 3 * len(rows)
    for i, (seen, read) in enumerate(into):
        row, columns, visual = rows[i % len(rows)]
        torch.testing.assert_close(read["embeddings"], entered[0][row, columns], rtol=1e-5, atol=1e-5)
        assert [columns[c] for c in read["shown"].tolist()] == visual
        assert read["words"].tolist() == list(range(len(seen.states)))[-max(seen.question, 1) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_normed_states_and_rotated_keys_are_the_models_own(family: str) -> None:
    into: list[Any] = []
    lm, given = model(family), inputs(family, ragged(family))
    with torch.no_grad(), tokenprune.prune(lm, {"prune": [a_pass(Reader(into), 2, 3)]}):
        lm(**given)
    with torch.no_grad():
        full = lm(**given, use_cache=True, output_hidden_states=True)
    for (seen, read), (row, columns, _) in zip(into, real_columns(family), strict=True):
        states = full.hidden_states[2][row, columns]
        torch.testing.assert_close(read["normed"], lm.model.language_model.norm(states), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            read["rotated_keys"], full.past_key_values.layers[1].keys[row][:, columns], rtol=1e-4, atol=1e-4
        )
        assert not torch.allclose(read["normed"], seen.states)


def test_embeddings_are_let_go_after_the_last_stage() -> None:
    into: list[Any] = []
    with torch.no_grad(), tokenprune.prune(model("llava"), {"prune": [a_pass(Reader(into), 2, 3)]}):
        model("llava")(**inputs("llava", ONE))
    with pytest.raises(AssertionError):
        into[0][0].source.embeddings()
    with pytest.raises(ScorerError, match="no embeddings"):
        Seen.of(keep=1, hidden=rand(3, 4)).embeddings  # noqa: B018


def test_query_columns_that_are_not_there_are_named() -> None:
    for columns in ((0, 99), (-99,)):
        recipe = {"prune": [a_pass(Attention(queries=columns), 2, 3)]}
        with (
            pytest.raises(ScorerError, match=f"{columns[-1]}.* do not exist: 28 columns are left at layer 2"),
            torch.no_grad(),
            tokenprune.prune(model("llava"), recipe),
        ):
            model("llava")(**inputs("llava", ONE))


def test_attention_without_query_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        Attention(queries=())


# -- diversity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 4, 11, 12])
@pytest.mark.parametrize("kind", ["random", "ties", "duplicates"])
def test_diversity_keeps_the_greedy_max_min_set(kind: str, keep: int) -> None:
    features = rand(12, 6) if kind == "random" else lattice(12, 3)
    if kind == "duplicates":
        features[6:] = features[:6]
    kept = best(Diversity().score(Seen.of(keep=keep, hidden=features)), keep)
    assert kept == sorted(greedy_max_min(features.double().numpy(), keep))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_diversity_of_half_precision_rows_is_computed_in_float32(dtype: torch.dtype) -> None:
    features = rand(40, 16).to(dtype)
    kept = best(Diversity().score(Seen.of(keep=10, hidden=features)), 10)
    assert kept == sorted(greedy_max_min(features.double().numpy(), 10))


# -- random ----------------------------------------------------------------------------------------------------------


def kept_columns(family: str, prompts: Sequence[Prompt], scorer: Scorer) -> list[list[int]]:
    """Per prompt, which of its own columns (padding not counted) survive at layer 2."""
    given = inputs(family, prompts)
    with torch.no_grad(), tokenprune.prune(model(family), {"prune": [a_pass(scorer, 2, 5)]}) as pruning:
        model(family)(**given)
    assert pruning.state is not None
    view, pads = pruning.state.views[2], (given["attention_mask"] == 0).sum(1).tolist()
    return [[column - pads[row] for column in view.index[row][view.valid[row]].tolist()] for row in range(len(prompts))]


@pytest.mark.parametrize("family", FAMILIES)
def test_random_draws_the_same_alone_in_a_batch_and_in_any_order(family: str) -> None:
    a, b, c = ragged(family)
    alone = [kept_columns(family, [prompt], Random())[0] for prompt in (a, c)]
    together = kept_columns(family, [a, b, c], Random())
    turned = kept_columns(family, [c, a, b], Random())
    assert [together[0], together[2]] == alone
    assert turned == [together[2], together[0], together[1]]
    assert kept_columns(family, [a, b, c], Random()) == together


def test_random_draws_differ_by_seed_and_by_prompt() -> None:
    seen = Seen.of(keep=5, hidden=rand(64, 4))
    other = replace(seen, ids=seen.ids + 1)
    draws = [Random(seed).score(each) for seed in range(5) for each in (seen, other)]
    assert len({tuple(best(draw, 5)) for draw in draws}) == 10


def test_random_keeps_every_token_about_equally_often() -> None:
    """400 seeds keep 8 of 32 tokens: each about 100 times (standard deviation 8.7)."""
    seen = Seen.of(keep=8, hidden=rand(32, 4))
    counts = torch.zeros(32)
    for seed in range(400):
        counts[best(Random(seed).score(seen), 8)] += 1
    assert counts.sum() == 3200
    assert (counts - 100).abs().max() < 35
    assert counts.std() < 15
