"""Every registered recipe on pico at equal budgets: how much of the unpruned accuracy is left, and at what cost.

    python benchmarks/pico/leaderboard.py

What the JSON of the same settings has is not measured again, except the recipes named by `--recipes`; its other rows
stay as they are. One file per recipe and budget is written as it is done, and a run that was killed goes on from there.
`--limit` questions of each kind are asked; intervals are 95 % of bootstrap samples of scenes, the same for all recipes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from tokenprune.amounts import read
from tokenprune.errors import BudgetError, LayerError, TokenpruneError
from tokenprune.lab.loading import PICO, load_model
from tokenprune.lab.pico.scenes import KINDS
from tokenprune.lab.pico.task import Task
from tokenprune.lab.results import Rows, markdown
from tokenprune.outputs import check_output, read_json, write, write_json
from tokenprune.recipe import BUDGETS as KEEPS
from tokenprune.recipe import load, presets
from tokenprune.registry import registry

ROOT = Path(__file__).resolve().parents[2]
BUDGETS = ("1/2", "1/3", "2/9", "1/9")
SAMPLES = 2000
RANDOM, IN_TOWER = "random", "random-in-tower"
"""What recipes are held against: in the decoder, and inside the vision tower."""
Cell = dict[str, Any]
Place = tuple[str | None, str | None]
"""Recipe and budget of a cell."""


def key_of(recipe: str | None, budget: str | None) -> str:
    """Of a cell; another recipe file is another cell."""
    return f"{recipe or 'unpruned'} {(budget or 'all').replace('/', 'of')}: {recipe and load(recipe)!r}"


def places(result: dict[str, Any]) -> dict[Place, Cell]:
    """Rows of a result, the unpruned one first."""
    return {(cell["recipe"], cell["budget"]): cell for cell in [result["unpruned"], *result["cells"]]}


def ranked() -> list[str]:
    """Every registered recipe, and its presets that are more than another budget."""
    names = []
    for name in registry().entries["recipe"]:
        settings = {preset: [line.partition("=")[0] for line in lines] for preset, lines in presets(name).items()}
        other = [
            preset for preset, paths in settings.items() if not {path.rpartition(".")[2] for path in paths} & {*KEEPS}
        ]
        names += [name, *(f"{name}@{preset}" for preset in other)]
    return names


def to_measure(recipes: Sequence[str] | None, budgets: Sequence[str], before: Collection[Place] = ()) -> list[Place]:
    """Cells of these recipes, by default of all that have none yet, and of what they are held against."""
    names = [name for name in ranked() if any((name, budget) not in before for budget in budgets)]
    names = list(recipes or names)
    if not names and before:
        return []
    against = [RANDOM, IN_TOWER] if any(load(name).vision_passes for name in names) else [RANDOM]
    return [(None, None), *((name, budget) for name in dict.fromkeys([*names, *against]) for budget in budgets)]


def joined(before: dict[Place, Cell], measured: dict[Place, Cell], path: Path) -> dict[Place, Cell]:
    """Rows of the file with those measured now in their places; new ones follow.

    Rows that stay were held against what was measured anew: that must have come out the same.
    """
    for place in before.keys() & measured.keys():
        if place[0] in (None, RANDOM, IN_TOWER) and json.dumps(before[place]) != json.dumps(measured[place]):
            raise SystemExit(
                f"{place[0] or 'the unpruned model'} at budget {place[1] or 'all'} came out otherwise than in {path}: "
                "another model, code or machine made its rows. Delete that file to measure all of them anew"
            )
    return {**before, **measured}


def measure(task: Task, recipe: str | None, budget: str | None, done: Callable[[], object] = lambda: None) -> Cell:
    """One cell: a 1 or 0 for each question, by kind and in the order of the scenes, or why it cannot be had.

    `random` is what all others are held against, so it drops its tokens earlier where its own layer is too late.
    """
    about = {"recipe": recipe, "budget": budget}
    earlier = [("prune.0.schedule.layer=1",), ("prune.0.schedule.layer=0",)] if recipe == RANDOM else []
    for overrides in ((), *earlier):
        try:
            answers = task.answer(recipe, *overrides, budget=read(budget) if budget else None, done=done)
        except (BudgetError, LayerError) as error:
            reason = str(error)
            continue
        except TokenpruneError as error:
            return {**about, "failed": str(error)}
        return {
            **about,
            "layers": answers.layers,
            "average": round(answers.average, 3),
            "flops_share": round(answers.flops_share, 5),
            "right": {kind: "".join(str(int(one)) for one in right) for kind, right in answers.right.items()},
        }
    return {**about, "unreachable": reason}


def summary(cells: Sequence[Cell], settings: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, share of the unpruned accuracy and difference to random tokens, with intervals.

    The first cell is the unpruned one. Scenes are drawn with replacement, `SAMPLES` times and the same for all, so
    that every comparison is paired by question.
    """
    scenes = settings["limit"]
    draws = np.random.default_rng(settings["seed"]).multinomial(scenes, [1 / scenes] * scenes, size=SAMPLES) / scenes
    bits = [_bits(cell) if "right" in cell else None for cell in cells]
    random = {
        (cell["recipe"], cell["budget"]): right
        for cell, right in zip(cells, bits, strict=True)
        if cell["recipe"] in (RANDOM, IN_TOWER)
    }
    whole = bits[0]
    assert whole is not None
    rows = []
    for cell, right in zip(cells, bits, strict=True):
        row = {key: value for key, value in cell.items() if key != "right"}
        if right is not None:
            row["accuracy"] = {kind: round(float(one.mean()), 4) for kind, one in right.items()}
            row["kept"] = {
                kind: _interval(one.mean() / whole[kind].mean(), (draws @ one) / (draws @ whole[kind]))
                for kind, one in right.items()
            }
            against = IN_TOWER if inside_tower(cell) else RANDOM
            if (other := random.get((against, cell["budget"]))) is not None and cell["recipe"] != against:
                apart = right["all"] - other["all"]
                row["against_random"] = _interval(apart.mean(), draws @ apart)
                row["worse_than_random"] = row["against_random"]["high"] < 0
        rows.append(row)
    return {"settings": settings, "unpruned": rows[0], "cells": rows[1:]}


def inside_tower(cell: Cell) -> bool:
    """Whether it drops tokens inside the vision tower, where layers count down to the projector, -1."""
    return min(cell.get("layers", []), default=0) < 0


def _bits(cell: Cell) -> dict[str, np.ndarray]:
    """By kind, and the mean over the kinds of each scene as `all`."""
    found = {kind: np.array(list(text), dtype=float) for kind, text in cell["right"].items()}
    return {**found, "all": np.mean(list(found.values()), axis=0)}


def _interval(value: float, samples: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


HEAD = """# Leaderboard on pico

Every registered recipe, plugins included, on the small model that ships with the package, at equal budgets: all keeps
of a recipe are rescaled by one factor so that a prompt's visual tokens, as a mean over the decoder blocks, are this
share of them. {limit} held-out questions of each kind (seed {seed}); unpruned, pico answers {unpruned} of them.

**What this can say.** That a method runs as its recipe says, what it costs here, and which tokens this model needs for
which kind of question: exact answers with one truth, the same questions for all, intervals.

**What it cannot say.** Which method is better on a 7B model. pico has 4.7 million weights, 144 visual tokens, a plain
background and a tower of its own; its attention was helped to find what a question is about; thresholds and layers of
the recipes were chosen by their authors for other models. Ranks here need not be ranks there.

"Kept" is accuracy divided by unpruned accuracy, with the 95 % interval of {samples} bootstrap samples of scenes; kinds
are kept shares too. `random` drops random tokens at the Entropy Collapse Layer, and earlier where that is too late for
the budget. A recipe is marked ▼ where the whole interval of its paired difference to `random` lies below zero, and ▲
where it lies above. Recipes that prune inside the vision tower are held against `random-in-tower`, and the tower's own
cost, which they alone reduce, is not in this table. Tokens are the mean over blocks of {visual}; FLOPs are the
decoder's prefill, towers and scorers left out. Made by `python benchmarks/pico/leaderboard.py`; the numbers are in
[pico-leaderboard.json](../benchmarks/results/pico-leaderboard.json).
"""


def page(result: dict[str, Any]) -> str:
    """docs/leaderboard.md."""
    settings, whole = result["settings"], result["unpruned"]
    parts = [
        HEAD.format(
            limit=settings["limit"],
            seed=settings["seed"],
            unpruned=f"{whole['accuracy']['all']:.1%}",
            samples=SAMPLES,
            visual=f"{whole['average']:.0f}",
        )
    ]
    for budget in settings["budgets"]:
        cells = [cell for cell in result["cells"] if cell["budget"] == budget]
        done = sorted((c for c in cells if "kept" in c), key=lambda c: (-c["kept"]["all"]["value"], c["recipe"]))
        header = ["recipe", "", "kept", *KINDS, "layers", "tokens", "FLOPs"]
        parts.append(f"## Budget {budget}\n\n{markdown(header, [_line(cell) for cell in done])}")
        for key, words in (("unreachable", "Cannot reach this budget"), ("failed", "Could not be run")):
            if out := [f"- `{cell['recipe']}`: {cell[key]}" for cell in cells if key in cell]:
                parts.append(f"{words}:\n\n" + "\n".join(out) + "\n")
    return "\n".join(parts)


def _line(cell: Cell) -> list[str]:
    kept, apart = cell["kept"], cell.get("against_random")
    mark = "" if apart is None else "▼ worse than random" if apart["high"] < 0 else "▲" if apart["low"] > 0 else ""
    name = f"**`{cell['recipe']}`**" if cell["recipe"] in (RANDOM, IN_TOWER) else f"`{cell['recipe']}`"
    span = f"{kept['all']['value']:.1%} ({kept['all']['low']:.1%} to {kept['all']['high']:.1%})"
    kinds = [f"{kept[kind]['value']:.0%}" for kind in KINDS]
    layers = [layer for layer in cell["layers"] if layer >= 0]
    where = " ".join(map(str, layers)) if len(layers) < 4 else f"{layers[0]} to {layers[-1]}"
    where = f"tower {where}".strip() if inside_tower(cell) else where
    return [name, mark, span, *kinds, where, f"{cell['average']:.1f}", f"{cell['flops_share']:.1%}"]


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not measured yet, write the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes",
        nargs="+",
        help="measured even if the JSON has them; by default those it lacks, and what they are held against",
    )
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--limit", type=int, default=500, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "pico-leaderboard")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "pico-leaderboard.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "leaderboard.md")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    for path, folder in ((args.cells, True), (args.json, False), (args.page, False)):
        check_output(path, folder)
    settings = {"model": "pico", "limit": args.limit, "seed": args.seed, "budgets": args.budgets, "samples": SAMPLES}
    there = read_json(args.json)
    before = places(there) if isinstance(there, dict) and there.get("settings") == settings else {}
    weights = hashlib.sha256((PICO / "model.safetensors").read_bytes()).hexdigest()
    rows = Rows(args.cells, {"command": "leaderboard", "weights": weights, "limit": args.limit, "seed": args.seed})
    wanted = to_measure(args.recipes, args.budgets, before)
    missing = [place for place in wanted if key_of(*place) not in rows]
    took = []
    if missing:
        task = Task(load_model("pico"), args.limit, args.seed, args.batch)
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("cells", total=len(missing) * len(task))
            for number, place in enumerate(missing, start=1):
                start = time.perf_counter()
                cell = measure(task, *place, lambda: progress.advance(bar))
                rows.add(key_of(*place), cell)
                progress.update(bar, completed=number * len(task))
                if "right" in cell:
                    took.append(time.perf_counter() - start)
    cells = before
    if wanted:
        measured = summary([rows[key_of(*place)] for place in wanted], settings)
        cells = joined(before, places(measured), args.json)
    result = {"settings": settings, "unpruned": cells[None, None], "cells": [cells[at] for at in cells if at[0]]}
    write_json(args.json, result)
    write(args.page, page(result))
    print(f"{len(missing)} of {len(cells)} cells measured now; {args.json} and {args.page} written")
    if took:
        mean = sum(took) / len(took)
        print(f"{mean:.1f} s a cell, {mean * 100 / args.limit:.1f} s for 500 questions")


if __name__ == "__main__":
    main()
