"""What pruning inside the vision tower saves: CLIP-L/336 on one picture, and CLIP-L/224 on a video of 16 frames.

    python benchmarks/tower.py

Random weights, float32; the decoder is a quarter of LLaVA's in width and depth, so that the whole prefill is measured
too. Unpruned and every recipe in turn, medians over pairs of one round.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tokenprune.lab import random_models as shapes
from tokenprune.lab.bench import Bench, Measured
from tokenprune.outputs import write_json

CASES = {"picture": "llava-1.5-7b", "video": "video-llava-7b"}
RECIPES = ("evoprune", "tome", "folder", "random-in-tower", "evoprune-entropyprune")


def build(case: str, scale: Fraction, frames: int) -> Bench:
    """The published tower before a small decoder, and one prompt for it."""
    from transformers import AutoModelForImageTextToText

    name = CASES[case]
    config = shapes.config(name, scale)
    config.vision_config = shapes.config(name).vision_config
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    media: dict[str, Any] = {}
    if case == "video":
        media = {"pixel_values_videos": torch.randn(1, frames, 3, 224, 224, generator=torch.Generator().manual_seed(1))}
    return Bench(model, shapes.prompt(name, model, 60, media), new_tokens=2)


def line(one: Measured, whole: Measured) -> list[str]:
    """A row of the table; tower and prefill together as a ratio of medians."""
    both = one.median("tower_ms") + one.median("prefill_ms")
    return [
        one.name,
        f"{one.average:.1f}",
        f"{one.median('tower_ms'):.0f}",
        f"{one.tower_speed_up:.2f}x",
        f"{one.tower_bound:.2f}x",
        f"{one.tower_speed_up / one.tower_bound:.0%}",
        f"{one.scoring_share:.1%}",
        f"{both:.0f}",
        f"{(whole.median('tower_ms') + whole.median('prefill_ms')) / both:.2f}x",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, with `--json`, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--scale", type=Fraction, default=Fraction(1, 4), help="of the decoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for case in args.cases:
        bench = build(case, args.scale, args.frames)
        ticks = iter(track(range(bench.rounds(args.runs)), description=case, console=Console(stderr=True)))
        next(ticks)
        found = bench.measure(args.recipes, runs=args.runs, ecl=1, done=lambda ticks=ticks: next(ticks, None))  # type: ignore[misc]
        table = Table(
            *("recipe", "tokens", "tower ms", "speed-up", "FLOPs bound", "of bound", "scoring"),
            *("tower and prefill ms", "speed-up"),
            title=f"{case}: {bench.visual} visual tokens",
            title_justify="left",
        )
        for one in found:
            table.add_row(*line(one, found[0]))
        Console(width=140).print(table)
        results[case] = [{**asdict(one), "plan": {str(k): v for k, v in one.plan.items()}} for one in found]
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items() if key != "json"}
        write_json(args.json, {"settings": settings, "cases": results})


if __name__ == "__main__":
    main()
