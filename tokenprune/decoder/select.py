"""Which of one prompt's visual tokens stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..parts import guard
from ..plan.stages import Stage
from ..recipe import Pass
from ..registry import spell_part
from ..seen.prompt import Seen
from .run import ForwardPass


@dataclass(frozen=True, eq=False)
class Selected:
    """What one prompt's scorer and merger made of its visual tokens.

    Attributes:
        chosen: which of them stay, in order.
        scores: of all of them.
        folded: their states after merging; None if nothing was merged.
    """

    chosen: Int[Tensor, "j"]
    scores: Float[Tensor, "n"]
    folded: Float[Tensor, "n d"] | None = None


def select(forward: ForwardPass, stage: Stage[Pass], row: int, seen: Seen) -> Selected:
    """Score, keep the highest in their order, and fold the rest into them if the step says so.

    Raises:
        ScorerError: the scorer or merger failed, or broke its word on shapes. What only the device knows (NaN) is
            asked at the end of the pass.
    """
    where, step = f"at layer {seen.layer}, prompt {row},", stage.step
    scorer, merger = step.scorer, step.merge
    who = spell_part("scorer", type(scorer), where)
    with torch.no_grad():
        score = _call(forward, who, seen, partial(scorer.score, seen))
        guard.check(who, "one number per visual token", score, seen.visual, guard.NUMBERS)
        forward.flags.append((guard.broken(who, guard.NAN), ~score.isnan().any()))
        score = forward.pipeline.ranks.agree(score)
        chosen = score.argsort(descending=True, stable=True)[: seen.keep].sort().values
    if merger is None:
        return Selected(chosen, score)
    who, hidden = spell_part("merger", type(merger), where), seen.hidden
    seen = replace(seen, scores=guard.own(score))
    folded = _call(forward, who, seen, partial(merger.merge, hidden, chosen, seen))
    guard.check(who, "as many rows as it got", folded, hidden, (hidden.dtype,))
    forward.flags.append((guard.broken(who, guard.NAN), ~folded.isnan().any()))
    return Selected(chosen, score, folded)


def _call(forward: ForwardPass, who: str, seen: Seen, part: partial[Tensor]) -> Tensor:
    """What a scorer or merger gives, of what `seen` shows it."""
    captured = forward.captured.get(seen.layer, {})
    return guard.call(who, part, (seen.ids, seen.states, forward.embedded, *captured.values()))
