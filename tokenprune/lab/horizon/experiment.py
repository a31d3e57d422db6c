"""The horizon of a model on pico's questions, measured: a row for each prompt."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from ...model.anatomy import Anatomy
from .. import conditions
from ..layers import read_layers
from ..loading import Loaded
from ..pico import scenes
from ..results import Results, Rows
from . import oracle, probe
from .found import Asked, Horizon, Prompt
from .windows import windows


def prepare(loaded: Loaded, asked: Asked, output: Path) -> Horizon:
    """What will be measured, before the work begins.

    Raises:
        LayerError: `asked.layers` are no layers of this model.
        BudgetError: the oracle keeps nothing, or all.
        TokenpruneError: `output` holds results of other settings, or this family cannot tell places of tokens.
    """
    anatomy = Anatomy.of(loaded.model)
    layers = read_layers(asked.layers, 0, anatomy.depth - 1) or list(range(anatomy.depth))
    prompts = [
        Prompt(f"{i}/{question.kind}", scene, question)
        for i, scene in enumerate(islice(scenes.held_out(asked.seed), asked.limit))
        for question in scene.questions
    ]
    picture = prompts[0].scene.picture
    first = loaded.inputs(prompts[0].question.text, [picture])
    sizes = ((picture.height, picture.width),)
    cut = windows(anatomy.adapter, anatomy.config, first, asked.window, loaded.processor, sizes)
    settings = {**conditions.of_rows("horizon", loaded), "task": "pico", "seed": asked.seed}
    settings |= {"window": asked.window, "layers": layers}
    if asked.oracle is not None:
        oracle.check_oracle(asked.oracle, int(anatomy.visual(first["input_ids"]).sum()))
    results = Results(output, "horizon", settings)
    results.check()
    return Horizon(asked, results, prompts, cut, layers)


def measure(
    loaded: Loaded,
    horizon: Horizon,
    advance: Callable[[], object] = lambda: None,
    complete: Callable[[int], object] = lambda done: None,
) -> None:
    """Measure every prompt, whose row is written as it is done; rows that are there are left.

    Args:
        loaded: the model.
        horizon: what `prepare` gave.
        advance: called after each layer of each prompt that was measured.
        complete: called after each prompt with how much of `Horizon.total` is done, what was there already too.
    """
    anatomy, rows = Anatomy.of(loaded.model), horizon.results.rows
    for done, one in enumerate(horizon.prompts, start=1):
        _add(rows, loaded, anatomy, one, horizon, advance)
        complete(done * len(horizon.layers))


def _add(
    rows: Rows, loaded: Loaded, anatomy: Anatomy, one: Prompt, horizon: Horizon, advance: Callable[[], object]
) -> None:
    """The rows of one prompt, where they are not there."""
    question, asked, cut, layers = one.question, horizon.asked, horizon.windows, horizon.layers
    token = loaded.first_token(question.text, question.answer)
    inputs = loaded.inputs(question.text, [one.scene.picture])
    if one.key not in rows:
        found = probe.row(anatomy, inputs, token, cut, layers, asked.batch, advance)
        about = {"kind": question.kind, "question": question.text, "answer": question.answer}
        rows.add(one.key, {**about, "token": token, **found})
    if asked.oracle is not None and (extra := one.oracle_key(asked.oracle)) not in rows:
        kept = oracle.oracle_row(anatomy.model, inputs, token, cut, layers, rows[one.key], asked.oracle, asked.seed)
        rows.add(extra, {"kind": question.kind, **kept})
