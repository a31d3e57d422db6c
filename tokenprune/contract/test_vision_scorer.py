"""The contract of scorers inside the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ..api import prune
from ..builtin.schedules import Spread
from ..errors import ScorerError
from ..parts.guard import NUMBERS
from ..parts.scorer import VisionScorer
from ..seen.pictures import Pictures, Ranking
from .base import Contract
from .families import RAGGED, Family

FIELDS = ("tokens", "sizes", "hidden")
TRIALS = ("once", "one token", "tokens alike")


def check(given: Any, pictures: Pictures) -> None:
    """A number for every token, and dropped tokens go into tokens that stay."""
    assert isinstance(given, Ranking), f"expected a Ranking, got {type(given).__name__}"
    shape = pictures.tokens.shape
    assert given.scores.shape == shape, f"expected scores of shape {tuple(shape)}, got {tuple(given.scores.shape)}"
    assert given.scores.dtype in NUMBERS, f"expected real numbers, got {given.scores.dtype}"
    device = pictures.tokens.device
    assert given.scores.device == device, f"expected scores on {device}, got {given.scores.device}"
    assert not given.scores.isnan().any(), "expected no NaN"
    if given.into is None:
        return
    assert given.into.shape == shape, f"expected tokens to merge into of shape {tuple(shape)}"
    assert given.into.dtype == torch.long, f"expected tokens to merge into as torch.long, got {given.into.dtype}"
    there = (given.into >= 0) & (given.into < shape[1])
    assert there.all(), "a token goes into one that does not exist"
    chosen = given.scores.argsort(dim=1, descending=True, stable=True)[:, : pictures.keep]
    stays = torch.zeros(shape, dtype=torch.bool).scatter(1, chosen, True)
    assert stays.gather(1, given.into)[~stays].all(), "a dropped token goes into one that is dropped too"


@dataclass(frozen=True)
class Tried(VisionScorer):
    """Ranks as the scorer does, and does to every group of pictures what a test asks for."""

    scorer: VisionScorer
    attempt: Callable[[Pictures], object]
    seen: list[int] = field(default_factory=list)

    @property
    def proportional(self) -> bool:
        return False  # not every tower can

    def rank(self, pictures: Pictures) -> Ranking:
        self.seen.append(len(pictures.tokens))
        self.attempt(pictures)
        return self.scorer.rank(pictures)


def each(
    scorer: VisionScorer, family: Family, attempt: Callable[[Pictures], object], dtype: torch.dtype = torch.float32
) -> None:
    """Attempt something with the pictures of a ragged batch, after every block of the tower."""
    tried = Tried(scorer, attempt)
    step = {"tower": "vision", "scorer": tried, "merge": "nearest", "schedule": Spread(keep=0.4, strategy="mean")}
    model = family.model(dtype=dtype)
    with torch.inference_mode(), prune(model, {"prune": [step]}) as pruning:
        logits = model(**family.given(RAGGED, dtype)).logits
    assert tried.seen
    assert pruning.state is not None
    assert all(
        0 < n < count for n, count in zip(pruning.state.count_after_vision, pruning.state.counts, strict=True) if count
    )
    assert logits[:, -1].isfinite().all()


def states(pictures: Pictures) -> dict[str, Tensor]:
    """All that there is to read; not every tower has CLS rows."""
    found = {name: getattr(pictures, name) for name in ("keys", "received", "salience")}
    with suppress(ScorerError):
        found["cls_attention"] = pictures.cls_attention
    return found


def cut(pictures: Pictures, part: Any, keep: int) -> Pictures:
    """Some pictures, or some tokens of each."""
    fields, places = {name: getattr(pictures, name)[part] for name in FIELDS}, pictures.places[part]
    read = {name: each[part] for name, each in states(pictures).items()}
    return replace(pictures, **fields, keep=keep, read=read.__getitem__, look=lambda: places)


def changed(pictures: Pictures, trial: str) -> Pictures:
    """The pictures of a trial."""
    if trial == "one token":
        return cut(pictures, (slice(None), slice(1)), keep=1)
    if trial == "tokens alike":
        same = {name: torch.ones_like(each) for name, each in states(pictures).items()}
        return replace(pictures, hidden=torch.ones_like(pictures.hidden), read=same.__getitem__)
    return pictures


class TestVisionScorer(Contract):
    """What every scorer inside the vision tower must do."""

    def test_its_settings_are_a_value(self, vision_scorer: VisionScorer) -> None:
        self.check_value(vision_scorer)

    @pytest.mark.parametrize("trial", TRIALS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_it_ranks_every_token(
        self, vision_scorer: VisionScorer, family: Family, dtype: torch.dtype, trial: str
    ) -> None:
        def attempt(pictures: Pictures) -> None:
            shown = changed(pictures, trial)
            check(vision_scorer.rank(shown), shown)

        each(vision_scorer, family, attempt, dtype)

    def test_it_gives_the_same_twice_and_leaves_what_it_is_shown(
        self, vision_scorer: VisionScorer, family: Family
    ) -> None:
        """Also torch's random state: who samples answers would get others."""

        def attempt(pictures: Pictures) -> None:
            shown = {**states(pictures), **{name: getattr(pictures, name) for name in FIELDS}}
            before = {name: tensor.clone() for name, tensor in shown.items()}
            random = torch.get_rng_state()
            once, again = vision_scorer.rank(pictures), vision_scorer.rank(pictures)
            assert torch.equal(once.scores, again.scores), "two calls gave different scores"
            assert (once.into is None) == (again.into is None)
            assert once.into is None or torch.equal(once.into, again.into)  # type: ignore[arg-type]
            assert torch.equal(random, torch.get_rng_state()), "use a Generator of your own"
            for name, tensor in shown.items():
                assert torch.equal(before[name], tensor), f"work on a copy of {name}"

        each(vision_scorer, family, attempt)

    def test_pictures_do_not_see_each_other(self, vision_scorer: VisionScorer, family: Family) -> None:
        def attempt(pictures: Pictures) -> None:
            together = vision_scorer.rank(pictures).scores
            alone = cut(pictures, slice(1), pictures.keep)
            torch.testing.assert_close(vision_scorer.rank(alone).scores, together[:1], rtol=1e-4, atol=1e-5)

        each(vision_scorer, family, attempt)
