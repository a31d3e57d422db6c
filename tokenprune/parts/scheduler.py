"""What says where tokens go and how many stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class PlanInput:
    """What a schedule may know.

    Attributes:
        depth: decoder blocks; inside the vision tower its blocks that count, and the projector.
        visual: visual tokens of one prompt, or of one picture.
        facts: about the model, by name: those that the schedule `needs`.
    """

    depth: int
    visual: int
    facts: Mapping[str, Any] = field(default_factory=dict)


class Scheduler(ABC):
    """Says after how many blocks how many tokens stay. A frozen dataclass, and a pure function of its input."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Names of facts (`tokenprune_facts`) that `plan` reads; they are known before `plan` is called."""

    with_layer: ClassVar[str | None] = None
    """The name of the schedule that this one becomes where a recipe's override says its `layer`; None: it has one."""

    @abstractmethod
    def plan(self, given: PlanInput) -> dict[int, int]:
        """`{layer: tokens kept}`, layers ascending, counts strictly decreasing and below `given.visual`.

        Raises LayerError (whatever `given.visual` is) and BudgetError.
        """
