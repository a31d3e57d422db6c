"""ToMe, FOLDER and EvoPrune against their cards, written again with loops over single pictures and tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import FAMILIES, RAGGED, answer, logits, model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import close, unpruned
from tokenprune_tower import EvoPrune, Folder, ToMe

import tokenprune
from tokenprune.seen.pictures import Pictures, Ranking


def pictures(n: int = 12, keep: int = 7, u: int = 2, seed: int = 0, sizes: torch.Tensor | None = None) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(u, n, generator=generator)
    made = Pictures.of(
        keep,
        torch.randn(u, n, 6, generator=generator),
        keys=torch.randn(u, n, 5, generator=generator),
        received=attention * 2,
        salience=attention / attention.sum(-1, keepdim=True) * 0.8,
    )
    return made if sizes is None else Pictures(**{**vars(made), "sizes": sizes})


def homes(ranking: Ranking) -> list[list[int]]:
    assert ranking.into is not None
    return ranking.into.tolist()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def merge(states: dict[int, torch.Tensor], weights: dict[int, float], gone: int, home: int) -> None:
    total = weights[gone] + weights[home]
    states[home] = (states[gone] * weights[gone] + states[home] * weights[home]) / total
    weights[home] = total
    del states[gone], weights[gone]


def folded(vectors: torch.Tensor, sizes: torch.Tensor, remove: int, score: Any) -> list[int]:
    """Rounds of matching, token by token; `score(states, tokens left, gone, home)`."""
    states, weights = dict(enumerate(vectors)), dict(enumerate(sizes.tolist()))
    home = list(range(len(vectors)))
    while remove:
        left = sorted(states)
        odd, even = left[1::2], left[0::2]
        best = {a: max((score(states, left, a, b), -b) for b in even) for a in odd}
        chosen = sorted(odd, key=lambda a: (-best[a][0], a))[: min(remove, len(odd))]
        now = {key: value.clone() for key, value in states.items()}
        for gone in chosen:
            target = -best[gone][1]
            merge(now, weights, gone, target)
            home = [target if place == gone else place for place in home]
        states, remove = now, remove - len(chosen)
    return home


@pytest.mark.parametrize("keep", [11, 7, 6, 4, 1])
def test_tome_merges_the_pairs_with_the_most_similar_keys(keep: int) -> None:
    sizes = torch.randint(1, 4, (2, 12), generator=torch.Generator().manual_seed(3)).float()
    given = pictures(keep=keep, sizes=sizes)
    found = homes(ToMe().rank(given))
    for u in range(2):
        score = lambda states, left, a, b: cosine(states[a], states[b])  # noqa: E731
        assert found[u] == folded(given.keys[u], sizes[u], 12 - keep, score)


@pytest.mark.parametrize("alpha", [0.0, 0.02, 5.0])
@pytest.mark.parametrize("keep", [8, 3])
def test_folder_keeps_what_is_salient_for_last(keep: int, alpha: float) -> None:
    """cos - 100 alpha share of attention; both are folded along."""
    given = pictures(keep=keep)
    found = homes(Folder(alpha).rank(given))
    share = given.salience / given.salience.sum(-1, keepdim=True)
    for u in range(2):
        joined = torch.cat([given.keys[u], share[u][:, None]], -1)

        def score(states: Any, left: Any, a: int, b: int) -> float:
            return cosine(states[a][:-1], states[b][:-1]) - 100 * alpha * float(states[a][-1])

        assert found[u] == folded(joined, torch.ones(12), 12 - keep, score)
    if alpha == 5.0 and keep == 8:
        odd = share[0, 1::2]
        assert sorted(p for p in range(12) if found[0][p] != p) == sorted((2 * odd.argsort()[:4] + 1).tolist())


@pytest.mark.parametrize("changes", [{}, {"protect": 0.0}, {"diversity": 0.0}, {"states": "keys"}, {"neighbours": 99}])
@pytest.mark.parametrize("keep", [9, 5])
def test_evoprune_weighs_similarity_by_diversity_and_protects_the_attended(keep: int, changes: dict[str, Any]) -> None:
    scorer = EvoPrune(**{"tau": 1.3, "diversity": 0.7, "neighbours": 3, **changes})
    given = pictures(keep=keep)
    found = homes(scorer.rank(given))
    vectors = given.keys if scorer.states == "keys" else given.hidden
    for u in range(2):
        joined = torch.cat([vectors[u], given.received[u][:, None]], -1)

        def apart(states: Any, left: list[int], i: int) -> float:
            unit = {j: states[j][:-1] / states[j][:-1].norm() for j in left}
            near = sorted(float((unit[i] - unit[j]).norm()) ** 2 for j in left if j != i)[: scorer.neighbours]
            return 1 - sum(math.exp(-d / scorer.tau**2) for d in near) / len(near)

        def score(states: Any, left: list[int], a: int, b: int) -> float:
            safe = max(0, min(int(scorer.protect * len(left)), len(left) - 2 * (len(left) - keep)))
            protected = sorted(left, key=lambda i: -float(states[i][-1]))[:safe]
            weight = math.exp(-scorer.diversity * (apart(states, left, a) + apart(states, left, b)))
            likeness = (1 + cosine(states[a][:-1], states[b][:-1])) / 2
            return likeness * weight - 8 * ((a in protected) + (b in protected))

        assert found[u] == folded(joined, torch.ones(12), 12 - keep, score)


def test_evoprune_leaves_protected_tokens_as_they_are() -> None:
    """In one round, where enough others are there to merge."""
    given = pictures(n=40, keep=32, u=3)
    into = EvoPrune(protect=0.25).rank(given).into
    assert into is not None
    for u in range(3):
        for place in given.received[u].topk(10).indices.tolist():
            assert into[u, place] == place
            assert (into[u] == place).sum() == 1


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), u=st.integers(1, 3), seed=st.integers(0, 99), data=st.data())
@pytest.mark.parametrize("scorer", [ToMe(), Folder(), EvoPrune(), EvoPrune(neighbours=50)])
def test_whatever_must_go_goes_into_something_that_stays(scorer: Any, n: int, u: int, seed: int, data: Any) -> None:
    keep = data.draw(st.integers(1, n))
    given = pictures(n, keep, u, seed)
    ranking = scorer.rank(given)
    assert ranking.into is not None
    stays = ranking.scores > 0
    assert stays.sum(1).tolist() == [keep] * u
    assert stays.gather(1, ranking.into).all()
    assert torch.equal(ranking.into[stays], torch.arange(n).expand(u, n)[stays])


@pytest.mark.parametrize("scorer", [ToMe(), Folder(), EvoPrune()])
def test_pictures_do_not_see_each_other_and_equal_tokens_do_no_harm(scorer: Any) -> None:
    given = pictures(u=3)
    together = homes(scorer.rank(given))
    for u in range(3):
        alone = Pictures.of(
            7,
            given.hidden[u : u + 1],
            **{name: getattr(given, name)[u : u + 1] for name in ("keys", "received", "salience")},
        )
        assert homes(scorer.rank(alone))[0] == together[u]
    same = Pictures.of(
        3, torch.ones(1, 9, 4), keys=torch.ones(1, 9, 4), received=torch.ones(1, 9), salience=torch.ones(1, 9)
    )
    assert (scorer.rank(same).scores > 0).sum() == 3


@pytest.mark.parametrize("recipe", ["tome", "folder", "evoprune", "evoprune-entropyprune", "tome-random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_differ_from_dropping_the_same_tokens(family: str, recipe: str) -> None:
    lm = model(family)
    override = [] if recipe != "evoprune-entropyprune" else ["prune.1.schedule.layer=1"]
    with tokenprune.prune(lm, recipe, *override) as pruning:
        merged = logits(answer(family, "sdpa", RAGGED))
        views = {layer: view.index for layer, view in pruning.state.views.items() if layer < 0}  # type: ignore[union-attr]
    with tokenprune.prune(lm, recipe, "prune.0.merge=null", *override):
        dropped = logits(answer(family, "sdpa", RAGGED))
    assert views
    assert not close(merged, dropped)
    assert not close(merged, unpruned(family, "sdpa", tuple(RAGGED)))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Folder(-1.0), "alpha must be >= 0"),
        (lambda: Folder(float("inf")), "alpha must be >= 0"),
        (lambda: EvoPrune(protect=1.5), "protect in"),
        (lambda: EvoPrune(tau=0.0), "tau > 0"),
        (lambda: EvoPrune(neighbours=0), "neighbours >= 1"),
        (lambda: EvoPrune(diversity=-1.0), "diversity >= 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make()
