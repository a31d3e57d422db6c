"""Layers and budgets as they are written in recipes and on the command line: one parser for both."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from .errors import BudgetError, LayerError

if TYPE_CHECKING:
    pass


from contextlib import suppress
from typing import Any

Layer = int | str
"""A number of decoder blocks (`2`) or a fraction of the depth (`"16/32"`)."""

Budget = int | float | str
"""A number of tokens (`192`) or a share of the prompt's visual tokens (`0.25`, `"1/3"`, `"30%"`)."""

_FRACTION = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*")

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def fraction(text: str) -> Fraction:
    """Read `"a/b"` or `"a%"`. Raises ValueError for anything else, and for b = 0."""
    if percent := _PERCENT.fullmatch(text):
        return Fraction(percent[1]) / 100
    match = _FRACTION.fullmatch(text)
    if not match or int(match[2]) == 0:
        raise ValueError(f"expected a fraction such as 16/32, got {text!r}")
    return Fraction(int(match[1]), int(match[2]))


def check_layer(layer: Layer) -> None:
    """Raise ValueError unless `layer` is a count >= 0 or a fraction in [0, 1)."""
    if isinstance(layer, str):
        if not _FRACTION.fullmatch(layer):
            raise ValueError(
                f"a layer is a number of blocks such as 2, or a share of them such as 16/32, got {layer!r}"
            )
        if fraction(layer) >= 1:
            raise ValueError(f"layer {layer!r} lies beyond the last block: use a fraction below 1")
    elif layer < 0:
        raise ValueError(f"layer must be >= 0, got {layer}")


def resolve_layer(layer: Layer, depth: int) -> int:
    """The number of blocks that see every token. Fractions round to the nearest block (14 for `"16/32"` of 28).

    Raises LayerError when no block is left to save.
    """
    count = int(fraction(layer) * depth + Fraction(1, 2)) if isinstance(layer, str) else layer
    if not 0 <= count < depth:
        raise LayerError(f"layer {layer} does not exist: this model has {depth} blocks, use 0 to {depth - 1}")
    return count


def check_budget(budget: Budget | None) -> None:
    """Raise ValueError unless `budget` is None, a count >= 0 or a share in [0, 1]."""
    if budget is None:
        return
    if isinstance(budget, str) and not (_FRACTION.fullmatch(budget) or _PERCENT.fullmatch(budget)):
        raise ValueError(
            "a budget is a number of tokens such as 192, or a share of them from 0 to 1 such as 0.25, 1/3 or 30%, got "
            f"{budget!r}"
        )
    amount = fraction(budget) if isinstance(budget, str) else budget
    if not (amount >= 0 and (isinstance(amount, int) or amount <= 1)):  # this way round, NaN is refused too
        raise ValueError(f"a budget is a number of tokens >= 0 or a share in [0, 1], got {budget}")


def resolve_budget(budget: Budget, visual: int) -> int:
    """Tokens meant by `budget` for a prompt with `visual` visual tokens, at most all of them.

    Shares round half up, as written: 0.29 is 29/100, not its binary neighbour.
    """
    if isinstance(budget, int):
        return min(visual, budget)
    share = fraction(budget) if isinstance(budget, str) else Fraction(str(budget))
    return int(share * visual + Fraction(1, 2))


def kept_for_average(average: Budget, layer: int, depth: int, visual: int) -> int:
    """Tokens to keep from `layer` on so that the mean over all blocks is `average`.

    `int((depth * average - layer * visual) / (depth - layer))`, as in the authors' released EntropyPrune code.
    Raises BudgetError when even dropping every token leaves a higher mean.
    """
    target = resolve_budget(average, visual)
    kept = (depth * target - layer * visual) // (depth - layer)
    if kept < 0:
        smallest = -(-layer * visual // depth)
        raise BudgetError(
            f"average {average} cannot be reached: {layer} of {depth} blocks see all {visual} visual tokens, so the "
            f"smallest average is {smallest}. Prune at an earlier layer or ask for at least {smallest}."
        )
    return kept


def checked(budget: Any) -> Budget:
    """The budget itself. Raises BudgetError unless it is a count >= 0 or a share in [0, 1]."""
    if isinstance(budget, (int, float, str)) and not isinstance(budget, bool):
        with suppress(ValueError):
            check_budget(budget)
            return budget
    raise BudgetError(
        "a budget is a number of visual tokens such as 192, or a share of them from 0 to 1 such as 0.25 or '1/3', got "
        f"{budget!r}"
    )


def read(text: str) -> Budget:
    """A budget from the command line. Raises BudgetError."""
    for number in (int, float):
        with suppress(ValueError):
            return checked(number(text))
    return checked(text)
