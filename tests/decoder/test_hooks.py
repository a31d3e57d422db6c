"""Hooks on decoder blocks: there while passes need them, and only then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, ONE, RAGGED, inputs, model
from oracle import RECIPES, close
from transformers import DynamicCache

import tokenprune
from tokenprune.pruner import Pruner
from tokenprune.state.prompt import Prompt

LATE = {"prune": RECIPES["entropy"]}  # after block 2


def hooked(lm: Any) -> list[int]:
    return [i for i, block in enumerate(lm.model.language_model.layers) if block._forward_pre_hooks]


def steps(lm: Any, given: dict[str, Any], masks: list[torch.Tensor | None]) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits of decode steps under these masks, and which blocks were hooked after the prefill and after each step."""
    cache = DynamicCache(config=lm.config.get_text_config())
    positions = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
    lm(**given, **({"position_ids": positions} if masks[0] is not None else {}), past_key_values=cache, use_cache=True)
    found, seen = [], [hooked(lm)]
    for mask in masks:
        token = torch.full((len(positions), 1), 17)
        more = {} if mask is None else {"attention_mask": mask, "position_ids": mask.shape[1] - 1 + 0 * token}
        found.append(lm(input_ids=token, past_key_values=cache, **more).logits[:, -1])
        seen.append(hooked(lm))
    return torch.stack(found), seen


def masks_of(given: dict[str, Any], count: int, hide: int | None = None) -> list[torch.Tensor | None]:
    """Of so many decode steps; from the second on without the column `hide`."""
    made: list[torch.Tensor | None] = []
    for step in range(1, count + 1):
        mask = torch.nn.functional.pad(given["attention_mask"], (0, step), value=1)
        if hide is not None and step > 1:
            mask[:, hide] = 0
        made.append(mask)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_is_watched_where_nothing_is_hidden(family: str) -> None:
    lm, given = model(family), inputs(family, ONE)
    with torch.no_grad(), tokenprune.prune(lm, LATE):
        assert hooked(lm) == []
        _, seen = steps(lm, given, [None] * 3 if family == "qwen2_5_vl" else masks_of(given, 3))
        assert seen == [[2]] * 4
    assert hooked(lm) == []


def test_padded_batches_and_eager_masks_keep_their_hooks() -> None:
    lm, given = model("llava"), inputs("llava", RAGGED)
    with torch.no_grad(), tokenprune.prune(lm, LATE):
        _, seen = steps(lm, given, masks_of(given, 2))
    assert seen == [[2, 3, 4, 5]] * 3
    lm, given = model("llava", "eager"), inputs("llava", ONE)
    with torch.no_grad(), tokenprune.prune(lm, LATE):
        _, seen = steps(lm, given, masks_of(given, 2))
    assert seen == [[2], [2, 3, 4, 5], [2, 3, 4, 5]]


@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava"])
def test_a_column_hidden_later_is_hidden_from_pruned_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watched block sees that the model made a mask, and the blocks behind it get theirs: as if always hooked."""
    lm, given = model(family), inputs(family, ONE)
    last = given["input_ids"].shape[1] - 2  # a column of text
    with torch.no_grad(), tokenprune.prune(lm, LATE):
        found, seen = steps(lm, given, masks_of(given, 3, hide=last))
        shown, _ = steps(lm, given, masks_of(given, 3))
    assert seen == [[2], [2], [2, 3, 4, 5], [2, 3, 4, 5]]
    monkeypatch.setattr(Prompt, "plain", False)
    with torch.no_grad(), tokenprune.prune(lm, LATE):
        expected, seen = steps(lm, given, masks_of(given, 3, hide=last))
    assert seen == [[2, 3, 4, 5]] * 4
    assert close(found, expected)
    assert not close(found[1:], shown[1:])


def test_a_watched_block_that_does_not_look_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof that the test above can fail: without the look, blocks get a mask over columns that they do not hold."""
    before = Pruner._before_block

    def blind(self: Pruner, number: int, made: Any, args: Any, kwargs: Any) -> Any:
        return None if made.as_unpruned else before(self, number, made, args, kwargs)

    monkeypatch.setattr(Pruner, "_before_block", blind)
    lm, given = model("llava"), inputs("llava", ONE)
    with torch.no_grad(), tokenprune.prune(lm, LATE), pytest.raises(RuntimeError):
        steps(lm, given, masks_of(given, 3, hide=given["input_ids"].shape[1] - 2))
