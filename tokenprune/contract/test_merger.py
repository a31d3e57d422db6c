"""The contract of mergers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..api import prune
from ..builtin.schedules import Fixed
from .base import Contract
from .cases import Merging, layer_of
from .families import RAGGED, Family
from .trials import KEEP, Tried, Words, merged

TRIALS = ("once", "nothing dropped", "nothing kept", "tokens alike")


def check(tried: Tried, trial: str) -> None:
    """As many finite rows as it got."""
    rows: Any = tried.of(trial)
    hidden = tried.seen.hidden
    assert isinstance(rows, torch.Tensor), f"expected a tensor, got {type(rows).__name__}"
    assert rows.shape == hidden.shape, f"expected the shape {tuple(hidden.shape)}, got {tuple(rows.shape)}"
    assert (rows.dtype, rows.device) == (hidden.dtype, hidden.device)
    assert rows.isfinite().all(), "expected finite rows"


class TestMerger(Contract):
    """What every merger must do."""

    @pytest.mark.parametrize("trial", TRIALS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_it_gives_as_many_finite_rows_as_it_got(
        self, merger: Merging, family: Family, dtype: torch.dtype, trial: str
    ) -> None:
        for tried in merged(merger, family, dtype):
            check(tried, trial)

    def test_it_gives_the_same_twice(self, merger: Merging, family: Family) -> None:
        for tried in merged(merger, family):
            assert torch.equal(tried.of("once"), tried.of("again")), "two calls on one prompt gave different rows"

    def test_it_leaves_what_it_is_shown(self, merger: Merging, family: Family) -> None:
        for tried in merged(merger, family):
            assert tried.changed["once"] == [], "work on a copy, such as hidden.clone()"

    def test_nothing_dropped_changes_nothing(self, merger: Merging, family: Family) -> None:
        if merger.merger.mixes:
            pytest.skip("it declares mixes = True")
        for tried in merged(merger, family):
            torch.testing.assert_close(tried.of("nothing dropped"), tried.seen.hidden)

    def test_the_model_answers(self, merger: Merging, family: Family) -> None:
        model, layer = family.model(), layer_of(merger.scorer, merger.merger)
        plan = {"scorer": merger.scorer, "schedule": Fixed(layer=layer, keep=KEEP), "merge": merger.merger}
        with torch.inference_mode(), prune(model, {"prune": [plan]}, processor=Words()) as pruning:
            logits = model(**family.inputs(RAGGED)).logits
        assert pruning.state is not None
        assert list(pruning.state.views) == [layer]
        assert logits[:, -1].isfinite().all()
