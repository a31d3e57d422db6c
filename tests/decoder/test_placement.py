"""Models whose weights accelerate keeps elsewhere give the same answers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from families import FAMILIES, RAGGED, inputs, model
from oracle import RECIPES, close

import tokenprune


@pytest.mark.works("Placement", "weights offloaded by accelerate")
@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_weights(family: str, where: str, tmp_path: Path) -> None:
    """The `next` block's projections are read too: there the engine itself runs an offloaded layer."""
    lm, given = model(family), inputs(family, RAGGED)
    offloaded = copy.deepcopy(lm)
    if where == "cpu":
        cpu_offload(offloaded, execution_device="cpu")
    else:
        disk_offload(offloaded, tmp_path, execution_device="cpu")
    assert next(offloaded.model.language_model.layers[3].parameters()).is_meta
    for recipe in ("mixture", "pyramid"):
        found = []
        for one in (lm, offloaded):
            with torch.no_grad(), tokenprune.prune(one, {"prune": RECIPES[recipe]}) as pruning:
                found.append(one(**given).logits[:, -1])
                assert pruning.report().stages
        assert close(found[1], found[0])
