"""The check of a model type: it holds where pruning does, and names the comparison that a fault breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TYPES

from tokenprune.decoder import additions, visibility
from tokenprune.families.standard import Standard
from tokenprune.model.anatomy import Anatomy
from tokenprune.parts.attention import Attention
from tokenprune.verify import check as checks
from tokenprune.verify.check import KEEP_ALL, LAID_OUT, check
from tokenprune.verify.trial import Trial
from tokenprune.verify.typical import typical
from tokenprune.verify.verdict import ATTENTION

PLAIN, DEEPSTACK, LINEAR, TWO_WAY = "ovis2", "cosmos3_omni", "minicpmv4_6", "gemma4_unified"
SAMPLE = (PLAIN, DEEPSTACK, LINEAR, TWO_WAY, "got_ocr2")


def config(model_type: str) -> Any:
    if model_type not in TYPES:
        pytest.skip("transformers is older than this model type")
    return typical(model_type)


def failed(model_type: str, adapter: Standard | None = None) -> dict[str, str]:
    return {one.name: one.failure for one in check(config(model_type), adapter or Standard()) if one.failure}


@pytest.mark.parametrize("model_type", SAMPLE)
def test_it_holds(model_type: str) -> None:
    found = check(config(model_type), Standard())
    assert not [one for one in found if one.failure is not None]
    other = "the shortened sequence" if model_type == LINEAR else "masking"
    names = [one.name for one in found]
    assert names[0] == KEEP_ALL
    assert names[-1] == ATTENTION
    assert len(names) == 6
    assert all(name.startswith("pruning ") and name.endswith(f" == {other}") for name in names[1:-1])


def test_additions_that_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(additions, "_plus", lambda forward, block, rows, hidden: hidden)
    found = failed(DEEPSTACK)
    assert KEEP_ALL not in found
    assert "logits differ by up to" in found["pruning before block 0 == masking"]


def test_a_causal_mask_instead_of_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = visibility.followed

    def causal(forward: Any, block: int, hidden: Any, own: Any) -> Any:
        made = followed(forward, block, hidden, own)
        if made.shape[2] == 1:
            return made
        seen = made if made.dtype == torch.bool else made >= 0
        below = torch.ones_like(seen).tril(made.shape[3] - made.shape[2])
        return below if made.dtype == torch.bool else torch.where(below, 0.0, torch.finfo(made.dtype).min)

    monkeypatch.setattr(visibility, "followed", causal)
    found = failed(TWO_WAY)
    assert "pruning before block 0 == masking" in found
    assert KEEP_ALL not in found


class Turned(Standard):
    """Reads queries and keys right, and turns them wrong."""

    def __init__(self, turn: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.turned = turn

    def attention(self, block: Any) -> Attention | None:
        found = super().attention(block)
        return None if found is None else replace(found, turn=self.turned)


def interleaved(states: torch.Tensor, tables: Any) -> torch.Tensor:
    """RoPE of neighbours, where the model's is of halves."""
    cos, sin = (table[:, None, :, : states.shape[-1] // 2].repeat_interleave(2, -1) for table in tables)
    one, other = states[..., ::2], states[..., 1::2]
    return states * cos + torch.stack((-other, one), -1).flatten(-2) * sin


@pytest.mark.parametrize("turn", [interleaved, lambda states, tables: states], ids=["neighbours", "none"])
def test_rotation_of_the_wrong_kind(turn: Any) -> None:
    found = failed(PLAIN, Turned(turn))
    assert list(found) == [ATTENTION]
    assert "rows differ by up to" in found[ATTENTION]


def test_positions_of_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = visibility.rotary

    def rolled(forward: Any, *args: Any) -> Any:
        positions, tables = rotary(forward, *args)
        return positions, tuple(table.roll(1, 1) for table in tables)

    monkeypatch.setattr(visibility, "rotary", rolled)
    found = failed(PLAIN)
    assert {name.split(" == ")[0] for name in found} >= {"pruning before block 0", "pruning at layer 2"}


def test_a_stage_that_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = checks._recipes

    def idle(anatomy: Anatomy) -> Any:
        found = recipes(anatomy)
        name = next(name for name in found if name.startswith("at layer "))
        step = found[name][0]
        found[name] = [replace(step, schedule=replace(step.schedule, keep=1.0))]
        return found

    monkeypatch.setattr(checks, "_recipes", idle)
    assert failed(PLAIN) == {"pruning at layer 2 == masking": "nothing was dropped"}


def test_answers_that_pruning_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that nobody looks at would make every comparison hold."""
    answered = checks._answered
    monkeypatch.setattr(checks, "_answered", lambda trial: torch.ones_like(answered(trial)))
    found = failed(PLAIN)
    assert found["pruning at layer 2 == masking"] == "pruning changed nothing"


def test_keeping_all_by_a_hair(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, calls = checks._answered, []

    def other(trial: Trial) -> torch.Tensor:
        calls.append(answered(trial))
        return calls[-1] * (1 + 1e-6 * (len(calls) == 2))

    monkeypatch.setattr(checks, "_answered", other)
    assert list(failed(PLAIN)) == [KEEP_ALL]


def test_a_model_that_is_laid_out_otherwise() -> None:
    found = check(config("blip-2"), Standard())
    assert [one.name for one in found] == [LAID_OUT]
    assert "has no attribute 'layers'" in str(found[0].failure)


def test_features_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "_counts", lambda self: False)
    assert "its forward takes none" in failed(PLAIN)["random picture features"]
