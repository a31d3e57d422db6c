"""What says where tokens go and how many stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from abc import ABC, abstractmethod
from typing import Any, ClassVar


@dataclass(frozen=True)
class PlanInput:
    """What a schedule may know: decoder blocks, visual tokens of one prompt, and the Entropy Collapse Layer."""

    depth: int
    visual: int
    ecl: int | None = None


class Scheduler(ABC):
    """Says after how many blocks how many tokens stay. A frozen dataclass, and a pure function of the shape."""

    needs_ecl: ClassVar[bool] = False
    """Whether `plan` reads `shape.ecl`; it is then known before `plan` is called."""

    @abstractmethod
    def plan(self, shape: PlanInput) -> dict[int, int]:
        """`{layer: tokens kept}`, layers ascending, counts strictly decreasing and below `shape.visual`.

        Raises LayerError (whatever `shape.visual` is) and BudgetError.
        """


Calibration = Callable[..., dict[str, Any]]
"""`fit(model, prompts, **settings)`: a recipe as in YAML, measured on `prompts`, an iterable of model inputs."""
