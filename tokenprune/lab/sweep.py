"""Every combination of settings, one row each: accuracy, tokens, FLOPs. Rows are written as they are done."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from ..amounts import read
from ..errors import BudgetError, LayerError, RecipeError
from ..outputs import write_all
from ..recipe import load
from . import plots
from .pico.task import Answers
from .results import Rows, markdown

UNPRUNED = "unpruned"
Row = dict[str, Any]


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
    rows = Rows(folder / "rows", settings)
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


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines as texts; an impossible combination says why in its last column."""
    kinds = list(next((row["accuracy"] for row in rows if "accuracy" in row), {}))
    impossible = any("impossible" in row for row in rows)
    header = ["combination", "layers", "tokens", "FLOPs", *kinds, *(["impossible"] if impossible else [])]
    lines = []
    for row in rows:
        if "impossible" in row:
            lines.append([row["name"], "", "", "", *[""] * len(kinds), row["impossible"]])
        else:
            layers = " ".join(map(str, row["layers"]))
            cost = [layers, f"{row['average']:.1f}", f"{row['flops_share']:.1%}"]
            right = [f"{row['accuracy'][kind]:.1%}" for kind in kinds]
            lines.append([row["name"], *cost, *right, *([""] if impossible else [])])
    return header, lines


def as_csv(rows: Sequence[Row]) -> str:
    """One column per setting and per kind of question."""
    settings = [dict(line.split("=", 1) for line in row["settings"]) for row in rows]
    keys = dict.fromkeys(key for each in settings for key in each)
    kinds = list(next((row["accuracy"] for row in rows if "accuracy" in row), {}))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["recipe", *keys, "budget", "layers", "average", "flops_share", *kinds, "impossible"])
    for row, given in zip(rows, settings, strict=True):
        right = [row.get("accuracy", {}).get(kind, "") for kind in kinds]
        cost = [" ".join(map(str, row.get("layers", []))), row.get("average", ""), row.get("flops_share", "")]
        values = [given.get(key, "") for key in keys]
        writer.writerow(
            [row["recipe"] or UNPRUNED, *values, row["budget"] or "", *cost, *right, row.get("impossible", "")]
        )
    return out.getvalue()


def save(rows: Sequence[Row], folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """JSON, CSV, Markdown and, where there is matplotlib, the two plots; returns what was written."""
    results = {
        "sweep.json": json.dumps({"settings": dict(settings), "rows": list(rows)}, indent=1) + "\n",
        "sweep.csv": as_csv(rows),
        "sweep.md": markdown(*table(rows)),
    }
    written = write_all(folder, results)
    figures = plot(rows, f"{settings['model']}: {settings['limit']} questions of each kind")
    return [*written, *write_all(folder, figures)]


def plot(rows: Sequence[Row], title: str) -> dict[str, bytes | None]:
    """Accuracy over the first layer that drops tokens (Fig. 5 of arXiv 2602.17196) and over the FLOPs left.

    By the names of their files; None without matplotlib.
    """
    done = [row for row in rows if "accuracy" in row]
    level = next(((UNPRUNED, _accuracy(row)) for row in done if row["recipe"] is None), None)
    found: dict[str, Callable[[], bytes]] = {}
    for name, label, x, without in (
        ("accuracy-layer", "first layer that drops visual tokens", _first_layer, ("layer", "layers")),
        ("accuracy-flops", "decoder prefill FLOPs left (%)", _flops, ("keep", "average", "ratio", "budget")),
    ):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in done:
            if row["layers"]:
                one = Combination(row["recipe"], tuple(row["settings"]), row["budget"])
                points.setdefault(one.spell(*without), []).append((x(row), _accuracy(row)))
        if points:
            joined = {key: sorted(line) for key, line in points.items()}
            found[f"{name}.png"] = partial(plots.lines, joined, (label, "exact answers (%)"), title, level)
    return plots.draw(found)


def _accuracy(row: Row) -> float:
    return 100 * float(row["accuracy"]["all"])


def _first_layer(row: Row) -> float:
    return float(row["layers"][0])


def _flops(row: Row) -> float:
    return 100 * float(row["flops_share"])
