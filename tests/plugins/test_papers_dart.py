"""DART (arXiv 2502.11494) against its loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tokenprune_papers.dart
import torch
from papers_reference import HEADS, KINDS, dart, draw
from tokenprune_papers.dart import Dart

SEEDS = range(10)


def order(prompt: Any, keep: int, scorer: Dart = Dart()) -> list[int]:  # noqa: B008
    return scorer.score(prompt.seen(keep)).argsort(descending=True, stable=True)[:keep].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_takes_the_same_tokens_in_the_same_order(seed: int, heads: str, kind: str) -> None:
    prompt = draw(kind, seed, HEADS[heads])
    for keep in (1, 4, 12, 23, 39):
        assert order(prompt, keep) == dart(prompt, keep)


@pytest.mark.parametrize("question", [0, 1, 3])
@pytest.mark.parametrize("pivots", [(1, 0), (2, 1), (4, 4)])
def test_short_questions_have_fewer_pivots(question: int, pivots: tuple[int, int]) -> None:
    prompt = draw("random", 5, (4, 2), question=question)
    assert order(prompt, 17, Dart(*pivots)) == dart(prompt, 17, pivots)


@pytest.mark.parametrize("asked", [64, 128, 192, 320])
def test_the_released_counts_give_every_pivot_equally_many(asked: int) -> None:
    """4 + 8 * floor(n / 8): 132 for 128."""
    keep = 4 + 8 * (asked // 8)
    prompt = draw("random", 0, (2, 1), n=576, question=20)
    taken = order(prompt, keep)
    assert len(set(taken)) == keep
    assert (keep - 4) % 8 == 0
    assert taken == dart(prompt, keep)


@pytest.mark.parametrize("mutant", ["largest cosine", "states without the norm", "keys without RoPE"])
def test_the_reference_can_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = draw("random", 1, (4, 2), n=200)
    given = prompt.seen(20)
    if mutant == "largest cosine":
        sort = torch.Tensor.argsort
        monkeypatch.setattr(torch.Tensor, "argsort", lambda t, **how: sort(t, **{**how, "descending": True}))
    elif mutant == "states without the norm":
        given = replace(given, source=replace(given.source, normalise=lambda states: states))
    else:
        given = replace(given, source=replace(given.source, rotation=lambda states, rows: states))
    taken = Dart().score(given)
    monkeypatch.undo()
    assert taken.argsort(descending=True, stable=True)[:20].tolist() != dart(prompt, 20)


@pytest.mark.parametrize("fields", [{"visual": 0}, {"text": -1}])
def test_pivots_that_make_no_sense_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="pivots"):
        Dart(**fields)


def test_no_loop_over_tokens() -> None:
    """Its one loop is over the rows of `likeness`, one per pivot."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(tokenprune_papers.dart.__file__).read_text())
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While | ast.comprehension)]
    assert [ast.unparse(loop.iter) for loop in loops if isinstance(loop, ast.For)] == ["enumerate(likeness)"]
    assert len(loops) == 1
