"""A row for each combination, measured where it is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...amounts import read
from ...errors import BudgetError, LayerError
from ...recipe import load
from ..loading import Loaded
from ..pico.task import Answers, Task
from ..results import Results
from .combining import Combination

Row = dict[str, Any]


def run(
    wanted: Sequence[Combination],
    answer: Callable[[Combination], Answers],
    folder: Path,
    settings: Mapping[str, Any],
) -> Iterator[Row]:
    """The rows, in order, each written into `folder/rows` as it is done; those that are there already are read.

    Args:
        wanted: what to measure.
        answer: measures it.
        folder: of the sweep.
        settings: everything else that the numbers depend on: a row made under other ones is made anew.
    """
    rows = Results(folder, "sweep", settings).rows
    for one in wanted:
        key = one.name if one.recipe is None else f"{one.name}: {load(one.recipe, *one.settings)!r}"
        if key not in rows:
            rows.add(key, _row(one, answer))
        yield rows[key]


def _row(one: Combination, answer: Callable[[Combination], Answers]) -> Row:
    about = {"name": one.name, "recipe": one.recipe, "settings": list(one.settings), "budget": one.budget}
    try:
        answers = answer(one)
    except (BudgetError, LayerError) as error:  # this model or prompt cannot be pruned so; others can
        return {**about, "impossible": str(error)}
    return {
        **about,
        "layers": answers.layers,
        "average": round(answers.average, 3),
        "flops_share": round(answers.flops_share, 5),
        "accuracy": {kind: round(share, 5) for kind, share in answers.accuracy.items()},
    }


class Asking:
    """Answers a task for one combination after the other. The task is prepared when the first one is asked for.

    Args:
        loaded: the model.
        limit: questions of each kind.
        seed: which scenes are drawn.
        batch: questions answered at once.
        done: called with the share of a combination that was done since.
    """

    def __init__(
        self, loaded: Loaded, limit: int, seed: int, batch: int, done: Callable[[float], object] = lambda share: None
    ) -> None:
        self._prepare = partial(Task, loaded, limit, seed, batch)
        self._task: Task | None = None
        self._done = done

    def __call__(self, one: Combination) -> Answers:
        self._task = task = self._prepare() if self._task is None else self._task
        budget = read(one.budget) if one.budget is not None else None
        step = 1 / len(task)
        return task.answer(one.recipe, *one.settings, budget=budget, done=lambda: self._done(step))
