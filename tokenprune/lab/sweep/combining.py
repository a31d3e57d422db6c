"""Recipes with one value of each setting, and all of them that comma lists of values make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ...amounts import read
from ...errors import RecipeError
from ...recipe import load
from ..results import UNPRUNED


@dataclass(frozen=True)
class Combination:
    """A recipe with one value of each setting; without a recipe nothing is pruned."""

    recipe: str | None
    settings: tuple[str, ...] = ()
    budget: str | None = None

    @property
    def name(self) -> str:
        """For tables and plots: settings by the last words of their path."""
        return self.spell()

    def spell(self, *without: str) -> str:
        """The name; settings whose last word is among `without`, or the budget, may be left out."""
        pairs = [setting.partition("=") for setting in self.settings]
        kept = [f"{_short(key)}={value}" for key, _, value in pairs if key.rpartition(".")[2] not in without]
        if self.budget is not None and "budget" not in without:
            kept.append(f"budget={self.budget}")
        return " ".join([self.recipe or UNPRUNED, *kept])


def _short(key: str) -> str:
    """`prune.0.schedule.layer` -> `layer`, `prune.1.schedule.layer` -> `1.layer`."""
    parts = key.split(".")
    words = parts[2:] or parts[-1:]
    if len(words) > 1:
        words = words[:-1] if words[-1] == "name" else words[words[0] == "schedule" :]
    number = [] if len(parts) < 2 or parts[1] == "0" else [parts[1]]
    return ".".join([*number, *words])


def split(text: str) -> list[str]:
    """A comma list; commas in brackets or quotes belong to a value, and quotes around a whole value are taken off."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
            if character == "," and depth == 0:
                parts.append("")
                continue
        parts[-1] += character
    return [re.sub(r"^(['\"])(.*)\1$", r"\2", part.strip()) for part in parts]


def combinations(recipes: Sequence[str], settings: Sequence[str] = (), budgets: str | None = None) -> list[Combination]:
    """Nothing pruned, then all combinations of recipes, comma lists of values and budgets, in the order given.

    Those that build the same recipe with the same budget are one, under the name that came first.

    Raises:
        RecipeError: some of them is no recipe; the message says every fault of all of them.
        BudgetError: a budget means nothing.
    """
    choices = []
    for line in settings:
        key, equals, values = line.partition("=")
        choices.append([f"{key}={value}" for value in split(values)] if equals else [line])
    budget: list[str | None] = [*split(budgets)] if budgets is not None else [None]
    limits = {limit: None if limit is None else _meant(limit) for limit in budget}
    problems: dict[str, None] = {}
    found: dict[tuple[str, str | None], Combination] = {}
    for name in recipes:
        for chosen in itertools.product(*choices):
            try:
                built = repr(load(name, *chosen))  # 1 == 1.0, but one is a token and the other all of them
            except RecipeError as error:
                problems |= dict.fromkeys(f"{name}: {problem}" for problem in error.problems)
                continue
            for limit, meant in limits.items():
                found.setdefault((built, meant), Combination(name, chosen, limit))
    if problems:
        raise RecipeError("sweep", list(problems))
    return [Combination(None), *found.values()]


def _meant(budget: str) -> str:
    """One spelling of a budget: `1/2` and `0.5` are the same share. Raises BudgetError."""
    wanted = read(budget)
    return f"{wanted} tokens" if isinstance(wanted, int) else f"{Fraction(str(wanted))} of them"
