"""Merging where the papers merge, between a block's attention and its MLP, against merging between two blocks.

    python benchmarks/pico/in_block.py

tokenprune merges between two blocks, because hooks cannot stand inside one. This script does it inside, for CLIP's
blocks, by computing the MLP again on merged rows, and asks pico the same questions both ways. Differences are paired
by question; intervals are 95 % of bootstrap samples of scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tokenprune.amounts import read
from tokenprune.lab.loading import load_model
from tokenprune.lab.pico.task import Task
from tokenprune.outputs import write_json
from tokenprune.parts.vision import Call
from tokenprune.vision import forward as vision
from tokenprune.vision.encoding import Encoding

RECIPES, BUDGETS = ("tome", "folder", "evoprune"), ("1/2", "2/9")


class InBlock(Encoding):
    """Prunes what a block's attention gave, and computes the block's MLP on what is left."""

    attended: Tensor

    def capture(self, block: Any, call: Call) -> None:
        super().capture(block, call)
        self.taps.before(block.layer_norm2, lambda args, kwargs: setattr(self, "attended", args[0]))

    def prune(self, layer: int, hidden: Tensor, state_rows: Sequence[Tensor] | None = None) -> Tensor:
        block: Any = self.adapter.blocks(self.tower)[layer - 1]
        attended = self.attended[:, -hidden.shape[1] :]  # the projector gets no CLS rows
        left = super().prune(layer, attended, state_rows)
        return left + block.mlp(block.layer_norm2(left))


@contextmanager
def inside_blocks() -> Iterator[None]:
    """Every tower pass in here merges inside its blocks."""
    vision.Encoding = InBlock  # type: ignore[misc]
    try:
        yield
    finally:
        vision.Encoding = Encoding  # type: ignore[misc]


def compare(task: Task, recipe: str, budget: str, seed: int) -> dict[str, Any]:
    """Accuracy both ways, and their difference per question."""
    kept = "prune.0.positions=original"  # nothing but the rows is compared
    between = task.answer(recipe, kept, budget=read(budget))
    with inside_blocks():
        inside = task.answer(recipe, kept, budget=read(budget))
    bits = [np.array(list(answers.right.values()), dtype=float).mean(0) for answers in (between, inside)]
    scenes = len(bits[0])
    draws = np.random.default_rng(seed).multinomial(scenes, [1 / scenes] * scenes, size=2000) / scenes
    low, high = np.percentile(draws @ (bits[0] - bits[1]), [2.5, 97.5])
    return {
        "recipe": recipe,
        "budget": budget,
        "between": round(between.accuracy["all"], 4),
        "inside": round(inside.accuracy["all"], 4),
        "difference": round(float((bits[0] - bits[1]).mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "same_answers": round(
            float(
                np.mean(
                    [
                        a == b
                        for kind in between.said
                        for a, b in zip(between.said[kind], inside.said[kind], strict=True)
                    ]
                )
            ),
            4,
        ),
    }


def main(arguments: list[str] | None = None) -> None:
    """Ask, print and, with `--json`, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=500, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    task = Task(load_model("pico"), args.limit, args.seed, batch=100)
    rows = [compare(task, recipe, budget, args.seed) for recipe in RECIPES for budget in BUDGETS]
    table = Table(*rows[0], title=f"{args.limit} questions of each kind")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    if args.json:
        write_json(args.json, {"limit": args.limit, "seed": args.seed, "rows": rows})


if __name__ == "__main__":
    main()
