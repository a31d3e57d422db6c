"""What recipes keep and cost on a published shape, without its weights, and whether they keep what their names say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from .. import ecl as layers
from ..amounts import Budget
from ..errors import LayerError, TokenpruneError
from ..plan.shapes import PUBLISHED, geometry, visual_tokens
from ..plan.stages import plan_whole
from ..recipe import Recipe, load, presets
from ..registry import registry
from .defaults import SHAPE, TEXT


def cost(
    recipe: Recipe, shape: str, visual: int, text: int = TEXT, ecl: int | None = None, budget: Budget | None = None
) -> dict[str, Any]:
    """Plan, average over the layers, FLOPs share and KV MiB (fp16) of one prompt. Raises LayerError, BudgetError.

    Where not every block keeps KV of all tokens, `kv_blocks` counts those that do.
    """
    sizes = geometry(shape)
    ecl = ecl or layers.shipped(shape, sizes.depth)
    facts = {} if ecl is None else {"ecl": ecl}
    if any(not facts.keys() >= set(step.schedule.needs) for step in recipe.decoder_passes):
        raise LayerError(
            f"no Entropy Collapse Layer is shipped for {shape}: pass --ecl LAYER (tokenprune calibrate measures it)"
        )
    if recipe.vision_passes and not sizes.vision_depth:
        raise LayerError(
            f"recipe {recipe.name} has tower: vision, and the blocks of the vision tower of {shape} are not known: "
            "give another shape, or the config.json of a model of a supported family"
        )
    plan = plan_whole(recipe, sizes, visual, facts, budget)
    blocks = {"kv_blocks": asdict(sizes.kv_blocks)} if sizes.kv_blocks else {}
    return {
        "plan": {str(layer): kept for layer, kept in plan.items()},
        "average": sum(sizes.tokens(plan, visual)) / sizes.depth,
        "flops_share": sizes.flops_share(plan, visual, text),
        "kv_mib": {"full": sizes.kv_mib({}, visual), "pruned": sizes.kv_mib(plan, visual)},
        **blocks,
    }


def costs(shape: str, visual: int, text: int, ecl: int | None, budget: Budget | None) -> Iterator[dict[str, Any]]:
    """The `cost` of every recipe and preset, or its `error`, under the name of the `recipe`."""
    for name in registry().entries["recipe"]:
        for full in [name, *(f"{name}@{preset}" for preset in presets(name))]:
            try:
                yield {"recipe": full, **cost(load(full), shape, visual, text, ecl, budget)}
            except TokenpruneError as error:
                yield {"recipe": full, "error": str(error)}


def spell(plan: Mapping[str, int]) -> str:
    """`L2: 166`; of a long plan the first two stages and the last."""
    stages = [f"tower {layer}: {kept}" if int(layer) < 0 else f"L{layer}: {kept}" for layer, kept in plan.items()]
    if len(stages) > 5:
        return f"{stages[0]}, {stages[1]} ... {stages[-1]} ({len(stages)} stages)"
    return ", ".join(stages) or "all"


def warning(name: str, recipe: Recipe) -> str | None:
    """What is wrong with a recipe that can be built: a number in its name that it does not keep, or nothing dropped.

    Args:
        name: of the recipe, with its preset if it has one, which then is the number.
        recipe: as it is built.
    """
    promised = name.rpartition("@")[2] if "@" in name else recipe.name
    number = int(promised) if re.fullmatch("[0-9]{1,6}", promised) else None
    broken = _broken_promise(recipe, number) if number is not None else None
    return broken or _idle(recipe, _promised_on(number or 0))


def _broken_promise(recipe: Recipe, promised: int) -> str | None:
    """What a recipe named after a number of tokens averages instead, where published tables have that number.

    Those are LLaVA-NeXT's for 640, 320 and 160, and what exceeds LLaVA-1.5's 576 tokens; the others are LLaVA-1.5's.
    """
    shape = _promised_on(promised)
    try:
        average = cost(recipe, shape, visual_tokens(shape))["average"]
    except TokenpruneError as error:
        return f"promises {promised} but has no plan on {shape}: {error}"
    if abs(average - promised) <= 1:
        return None
    return (
        f"promises {promised} but averages {average:.1f} tokens over the layers ({shape}, {visual_tokens(shape)} "
        "visual tokens); rename it, or give an average"
    )


def _promised_on(promised: int) -> str:
    """The model shape that a number of tokens is about."""
    largest = max(PUBLISHED, key=visual_tokens)
    return largest if promised in (160, 320) or promised > visual_tokens(SHAPE) else SHAPE


def _idle(recipe: Recipe, shape: str) -> str | None:
    """That a recipe drops nothing on a shape, or None."""
    visual = visual_tokens(shape)
    try:
        plan = cost(recipe, shape, visual)["plan"]
    except TokenpruneError:  # without a plan: `explain` says why
        return None
    return None if plan else f"drops nothing: it keeps all {visual} visual tokens of {shape}"
