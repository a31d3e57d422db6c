"""Facts that the recipe's schedules need and nobody knows yet: measured in one extra prefill."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ..errors import LayerError
from ..model import ranks
from ..parts.fact import Fact, Sample
from .inputs import PassInput
from .pipeline import Pipeline, needed

log = logging.getLogger("tokenprune")


def learn(pipeline: Pipeline, given: PassInput, visual: Bool[Tensor, "b s"]) -> None:
    """Measure what is missing on the prompts of this prefill, remember it, and say so once.

    Raises:
        LayerError: passes inside the vision tower have thinned the pictures out.
        UnsupportedModelError: weights are sharded, so that no rank can run a pass of its own.
    """
    for name, fact in needed(pipeline.recipe).items():
        if name not in pipeline.facts:
            pipeline.facts[name] = pipeline.ranks.same(_measured(pipeline, fact, given, visual))


def _measured(pipeline: Pipeline, fact: Fact, given: PassInput, visual: Bool[Tensor, "b s"]) -> Any:
    anatomy = pipeline.anatomy
    if pipeline.vision is not None:
        raise LayerError(
            f"{fact.about} of this model is not known, and it is not measured on pictures that passes "
            "inside the vision tower have thinned out: run `tokenprune calibrate` first, or give a layer"
        )
    ranks.check_extra_pass(anatomy.model, fact.about)
    alone = {**given.arguments, "use_cache": False, "past_key_values": None}
    value = fact.measure(anatomy.model, anatomy.adapter, [Sample(partial(anatomy.base, **alone), lambda: visual)])
    path = fact.remember(anatomy.model, anatomy.adapter, value)
    log.warning(
        "%s, measured on this model's first prompt: %s, %s",
        fact.about.removeprefix("the "),
        fact.tell(value),
        f"remembered in {path}" if path else f"not remembered{fact.why_not_remembered}",
    )
    return fact.planned(value)
