"""Every error a user can meet. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def install(extra: str) -> str:
    """How to get what an extra brings, for messages: the one place to change when the distribution is on an index.

    Until then its name there is anybody's to take, so no message names it: everything comes from a checkout.
    """
    return f'in a checkout of tokenprune, pip install -e ".[{extra}]"'


class TokenpruneError(Exception):
    """Base class: catch this to catch everything tokenprune raises on purpose."""


class RecipeError(TokenpruneError):
    """A recipe cannot be read. `problems` holds every fault found, each with its path in the recipe."""

    def __init__(self, recipe: str, problems: Iterable[str]) -> None:
        self.recipe, self.problems = recipe, list(problems)
        faults = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"recipe {recipe!r} is not valid:\n{faults}")


class UnknownNameError(TokenpruneError):
    """A scorer, schedule, merger, recipe, model shape or task that nobody registered.

    `listed` says where the known names stand, when they are too many to say them.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], listed: str | None = None) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"there is no {kind} {name!r}: {hint}{listed or 'known: ' + (', '.join(names) or 'none')}")


class RegistryError(TokenpruneError):
    """A name that several plugins register was asked for: nobody has it."""


class LayerError(TokenpruneError):
    """A layer that the model does not have."""


class BudgetError(TokenpruneError):
    """A token budget that no plan can meet."""


class UnsupportedModelError(TokenpruneError):
    """No adapter knows this model family, or the decoder does something pruning cannot follow."""


class AlreadyPrunedError(TokenpruneError):
    """The model is inside another pruning block."""


class PromptError(TokenpruneError):
    """The inputs of a forward pass do not let tokenprune see what it needs."""


class ScorerError(TokenpruneError):
    """A scorer or merger failed or broke its contract (shape, NaN), or asked for states that do not exist."""


class ScheduleError(TokenpruneError):
    """A schedule broke its contract: it failed, or planned what cannot be."""


class MediaError(TokenpruneError):
    """A picture or video that cannot be read, or a picture that cannot be written."""
