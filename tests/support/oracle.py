"""The oracle: pruning == masking."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from families import Prompt, answer, inputs, logits, model
from masking import hidden_by_mask

import tokenprune
from tokenprune.state.prompt import Prompt as PromptState
from tokenprune.state.view import View

ATTENTIONS = ("sdpa", "eager")


RECIPES: dict[str, list[dict[str, Any]]] = {
    "entropy": [{"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 5}}],
    "keys": [{"scorer": {"name": "entropy", "states": "key"}, "schedule": {"name": "fixed", "layer": 1, "keep": 0.5}}],
    "attention": [{"scorer": "attention", "schedule": {"name": "fixed", "layer": 3, "keep": "1/4"}}],
    "diversity": [{"scorer": "diversity", "schedule": {"name": "fixed", "layer": 0, "keep": 6}}],
    "withdraw": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 0}}],
    "pyramid": [
        {
            "scorer": {"name": "attention", "queries": "text", "block": "next"},
            "schedule": {"name": "pyramid", "layers": ["8/32", "16/32", "24/32"], "ratio": 0.5},
        }
    ],
    "mixture": [
        {"scorer": "diversity", "schedule": {"name": "fixed", "layer": 0, "keep": 0.6}},
        {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 6}},
        {"scorer": "random", "schedule": {"name": "fixed", "layer": 5, "keep": 2}},
    ],
}


@cache
def unpruned(family: str, attention: str, prompts: tuple[Prompt, ...]) -> torch.Tensor:
    return logits(answer(family, attention, prompts))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def check_oracle(
    family: str, attention: str, prompts: Any, recipe: Any, compact: bool = False, budget: Any = None
) -> tokenprune.Pruning:
    with tokenprune.prune(model(family, attention), recipe, budget=budget) as pruning:
        pruned = logits(answer(family, attention, prompts))
        state = pruning.state
        assert state is not None
        folded = {
            max(layer, 0): entering(family, attention, prompts, max(layer, 0))
            for layer, stage in state.stages.items()
            if stage.step.merge is not None or layer < 0  # what the vision tower made of its rows is tested elsewhere
        }
    assert sorted(state.views) == sorted(state.stages)
    mask = inputs(family, prompts)["attention_mask"]
    views = {max(layer, 0): state.views[layer] for layer in sorted(state.views)}
    with hidden_by_mask(model(family, attention), mask, views, compact and numbered_anew(state), folded):
        masked = logits(answer(family, attention, prompts))
    full = unpruned(family, attention, tuple(prompts))
    assert close(pruned, masked)
    with_pictures = [row for row, count in enumerate(state.counts) if count]
    assert not close(pruned[with_pictures], full[with_pictures])
    return pruning


def numbered_anew(state: PromptState) -> dict[int, View]:
    """What was left where positions were numbered anew, by layer."""
    return {layer: state.views[layer] for layer, stage in state.stages.items() if stage.step.positions == "compact"}


def entering(family: str, attention: str, prompts: Any, block: int) -> torch.Tensor:
    """The merged rows that enter a block; how they are merged is compared with the papers elsewhere."""
    lm, seen = model(family, attention), []
    handle = lm.model.language_model.layers[block].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            lm(**inputs(family, prompts))
    finally:
        handle.remove()
    return seen[0]


ENDING: dict[str, list[Prompt]] = {
    "one": [(1, (3, "image"))],
    "ragged": [(3, (2, "image", 3, "image")), (2, (7,)), (1, (4, "image", 9)), (8, ("image",))],
}
