"""Every recipe runs on every family; merging folds as it says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from families import BATCHES, DEPTH, FAMILIES, RAGGED, answer, inputs, logits, model
from oracle import check_oracle, close

import tokenprune
from tokenprune import Scorer, ecl
from tokenprune.recipe import load, presets, registered
from tokenprune.registry import registry


@pytest.mark.parametrize("batch", ["one", "ragged"])
@pytest.mark.parametrize("recipe", registered())
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_on_every_family(family: str, recipe: str, batch: str) -> None:
    lm = model(family)
    ecl.remember(lm, registry().adapter(lm.config), [1.0, 0.5, *[0.4] * (DEPTH - 2)])  # an early layer: 1
    compact = any(step.positions == "compact" for step in load(recipe).passes) and family != "qwen2_5_vl"
    check_oracle(family, "sdpa", BATCHES[batch], recipe, compact=compact)


OTHERWISE: dict[str, dict[str, float]] = {  # labels that are no averages over layers; the averages they come to
    "dart": {f"paper-{n}": (2 * 576 + 30 * (4 + 8 * (n // 8))) / 32 for n in (192, 128, 64)},
    "dart-vtw": {"192": (2 * 576 + 19 * 260) / 32},
    "divprune-vtw": {"192": 284 * 20 / 32},
    "fitprune": {"flops-60": 241.7, "flops-90": 72.8},
    "sparsevlm": {"192": 206.5, "128": 145.4, "64": 82.3},  # its authors count a layer that prunes as pruned
    "entropyprune-released": {"layer-1": 191.4},
    "sparsevlm-plus": {"192": 206.8, "128": 144.1, "64": 81.8},
}


@pytest.mark.parametrize("recipe", registered())
def test_presets_are_the_numbers_they_promise(recipe: str) -> None:
    """On LLaVA-1.5's 576 tokens and 32 layers: the average (or the count, where the recipe prunes once at layer 0)."""
    from tokenprune.plan.shapes import PUBLISHED
    from tokenprune.plan.stages import plan_whole

    geometry = PUBLISHED["llava-1.5-7b"]
    for preset in presets(recipe):
        visual = 576 if not preset.isdecimal() or int(preset) < 576 else 2880  # presets for LLaVA-NeXT
        tokens = geometry.tokens(plan_whole(load(f"{recipe}@{preset}"), geometry, visual, {"ecl": 2}), visual)
        otherwise = OTHERWISE.get(recipe, {}).get(preset)
        average = pytest.approx(float(preset), abs=1) if otherwise is None else pytest.approx(otherwise, abs=0.1)
        assert sum(tokens) / 32 == average


@dataclass(frozen=True)
class First(Scorer):
    def score(self, seen):
        return -torch.arange(len(seen.visual)).float()


def test_merging_folds_then_drops() -> None:
    """The kept rows that enter block L are the merged ones; the answer differs from dropping alone."""
    lm, entered = model("llava"), []
    plan = {"scorer": First(), "schedule": {"name": "fixed", "layer": 2, "keep": 3}}
    with tokenprune.prune(lm, {"prune": [plan]}):
        dropped = logits(answer("llava", "sdpa", RAGGED))
    # registered after the engine's hooks: sees what block 2 sees
    with tokenprune.prune(lm, {"prune": [{**plan, "merge": "nearest"}]}) as pruning:
        handle = None
        try:
            merged = logits(answer("llava", "sdpa", RAGGED))
            handle = lm.model.language_model.layers[2].register_forward_pre_hook(
                lambda module, args: entered.append(args[0])
            )
            with torch.no_grad():
                lm(**inputs("llava", RAGGED))
        finally:
            if handle is not None:
                handle.remove()
    assert not close(merged, dropped)
    with torch.no_grad():
        states = []
        probe = lm.model.language_model.layers[2].register_forward_pre_hook(lambda m, args: states.append(args[0]))
        lm(**inputs("llava", RAGGED))
        probe.remove()
    state = pruning.state
    view = state.views[2]
    for row in (0, 2):
        columns = state.visual[row].nonzero()[:, 0]
        hidden = states[0][row, columns]
        unit = torch.nn.functional.normalize(hidden, dim=-1)
        home = [i if i < 3 else int((unit[i] @ unit[:3].T).argmax()) for i in range(len(columns))]
        for kept in range(3):
            expected = hidden[[i for i, at in enumerate(home) if at == kept]].mean(0)
            place = int(((view.index[row] == columns[kept]) & view.valid[row]).nonzero()[0])
            assert close(entered[0][row, place], expected)
