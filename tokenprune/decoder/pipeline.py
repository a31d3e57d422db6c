"""A recipe on a model: what all forward passes share, put together when a pruning block is entered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..amounts import Budget
from ..errors import BudgetError, LayerError, UnsupportedModelError
from ..model import ranks
from ..model.anatomy import ALONE, FULL, STATES, WINDOWS, Anatomy
from ..model.ranks import Ranks
from ..model.taps import Live
from ..parts.fact import Fact
from ..parts.scheduler import PlanInput
from ..parts.vision import VisionAdapter
from ..plan.stages import Stage, plan, plan_stages, plan_vision
from ..recipe import Recipe
from ..registry import registry
from ..vision.forward import VisionPruner
from ..vision.recorder import Recorder

BOTH_WAYS = (
    "its decoder attends in both directions (is_causal is False), and pruning hides dropped tokens with causal masks; "
    "take is_causal back"
)


ANY = 1 << 20
"""Visual tokens of a prompt that every schedule drops some of."""


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A recipe on a model: what all of its forward passes share.

    Attributes:
        anatomy: of the model.
        recipe: to follow.
        budget: that scales the recipe's keeps.
        ranks: that share the model's heads.
        processor: reads the question as text; may be a tokenizer.
        vision: passes inside the vision tower; None if the recipe has none.
        recorder: of vision tower states that scorers and mergers read; None if they read none.
        facts: about the model that schedules need, as far as they are known.
    """

    anatomy: Anatomy
    recipe: Recipe
    budget: Budget | None
    ranks: Ranks
    processor: Any = None
    vision: VisionPruner | None = None
    recorder: Recorder | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def attention(self) -> str:
        """The decoder's attention backend, which may be changed between passes."""
        return str(self.anatomy.text._attn_implementation)

    def stages(self, counts: Sequence[int], before_vision: Sequence[int] | None = None) -> dict[int, Stage]:
        """Of prompts with so many visual tokens, which were more `before_vision`.

        Raises what `plan_stages` raises, and LayerError for a layer that may drop nothing.
        """
        found = plan_stages(self.recipe, self.anatomy.depth, counts, self.facts, self.budget, before_vision)
        _refuse_late(self.anatomy, max(found, default=0))
        return found


def assemble(anatomy: Anatomy, recipe: Recipe, budget: Budget | None, processor: Any, live: Live) -> Pipeline:
    """The pipeline of a recipe on a model.

    Raises:
        UnsupportedModelError: the decoder does something pruning cannot follow, or nobody knows its vision tower.
        LayerError: the recipe names a layer the model does not have, or a block that its vision tower does not.
        BudgetError: the budget is one of tokens, and pictures are pruned before the prompt is known.
    """
    shared = Ranks.of(anatomy.model)
    _refuse(anatomy, shared)
    facts = _known_facts(anatomy, recipe, shared)
    for step in recipe.decoder_passes:
        if facts.keys() >= set(step.schedule.needs):
            for visual in (1,) if anatomy.last_layer == anatomy.depth - 1 else (1, ANY):
                with suppress(BudgetError):  # depends on the prompt: said at its prefill
                    _refuse_late(anatomy, max(plan(step, PlanInput(anatomy.depth, visual, facts)), default=0))
    recorder = _recorder(anatomy, recipe, live)
    vision = _vision(anatomy, recipe, budget, facts, live)
    return Pipeline(anatomy, recipe, budget, shared, processor, vision, recorder, facts)


def needed(recipe: Recipe) -> dict[str, Fact]:
    """The facts that a recipe's schedules need, by name."""
    names = sorted({name for step in recipe.decoder_passes for name in step.schedule.needs})
    return {name: registry().get("fact", name)() for name in names}


def _refuse(anatomy: Anatomy, shared: Ranks) -> None:
    """Raise UnsupportedModelError for what pruning cannot follow, whatever the prompt."""
    reason = anatomy.adapter.refuse(anatomy.config) or ranks.refuse(anatomy, shared)
    if unknown := sorted({*anatomy.kinds} - {FULL, *WINDOWS, *STATES, *ALONE}):
        reason = reason or f"nobody has followed what its blocks of {', '.join(unknown)} do with dropped columns"
    if not getattr(anatomy.text, "is_causal", True):
        reason = reason or BOTH_WAYS
    if reason:
        raise UnsupportedModelError(f"this {anatomy.config.model_type} model cannot be pruned: {reason}")


def _refuse_late(anatomy: Anatomy, layer: int) -> None:
    """Raise LayerError for a layer behind which blocks read keys of blocks before it."""
    if layer > anatomy.last_layer:
        raise LayerError(
            f"layer {layer} cannot drop tokens: later blocks have no keys of their own and read those of block "
            f"{anatomy.last_layer}, which saw all tokens; prune at layer {anatomy.last_layer} or earlier"
        )


def _known_facts(anatomy: Anatomy, recipe: Recipe, shared: Ranks) -> dict[str, Any]:
    """What is known of the model before any pass; the rest is measured, if a pass of its own is possible."""
    found = {}
    for name, fact in needed(recipe).items():
        value = shared.same(fact.known(anatomy.model, anatomy.adapter))
        if value is None:
            ranks.check_extra_pass(anatomy.model, fact.about)  # and when it is measured: weights may be sharded later
        else:
            found[name] = value
    return found


def _recorder(anatomy: Anatomy, recipe: Recipe, live: Live) -> Recorder | None:
    """For the vision tower's blocks that scorers and mergers read; None if they read none."""
    wanted = [block for step in recipe.decoder_passes for block in step.reads_blocks]
    if not wanted:
        return None
    instead = ", or use a scorer of hidden states such as diversity"
    adapter = _vision_adapter(anatomy, "reads states of the vision tower", instead)
    return Recorder(adapter, anatomy.base, anatomy.config, wanted, live)


def _vision(
    anatomy: Anatomy, recipe: Recipe, budget: Budget | None, facts: dict[str, Any], live: Live
) -> VisionPruner | None:
    """For passes inside the vision tower; None if the recipe has none. It sees facts that become known later."""
    if not recipe.vision_passes:
        return None

    def stages(depth: int, counts: Sequence[int]) -> dict[int, Stage]:
        return plan_vision(recipe, depth, anatomy.depth, counts, facts, budget)

    adapter = _vision_adapter(anatomy, "prunes inside the vision tower")
    made = VisionPruner(adapter, anatomy.base, anatomy.config, recipe.vision_passes, stages, live)
    stages(made.depth, [])  # a budget of tokens
    plan_vision(recipe, made.depth, anatomy.depth, [1], {})  # a layer that is not there
    return made


def _vision_adapter(anatomy: Anatomy, does: str, instead: str = "") -> VisionAdapter:
    found = anatomy.adapter.vision_adapter()
    if found is None:
        raise UnsupportedModelError(
            f"the recipe {does}, and the adapter for {anatomy.config.model_type} does not know that tower: "
            f"give it a `vision_adapter`{instead}"
        )
    return found
