"""Measure the tiny LLaVA as shipped: exact answers to questions about pictures with held-out handwriting."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tokenprune.lab.loading import PICO, load_model
from tokenprune.lab.pico.task import Task
from tokenprune.lab.results import markdown
from tokenprune.outputs import write_json


def main() -> None:
    """Print the table and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--weights", type=Path, default=PICO)
    parser.add_argument("--scenes", type=int, default=500, help="each asks one question of each of the five kinds")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where the numbers go (default: accuracy.json beside the weights)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = Task(load_model(str(args.weights), dtype="float32"), args.scenes, args.seed)
    answers = task.answer()
    questions = {kind: len(right) for kind, right in answers.right.items()}
    lines = [
        [kind, str(questions.get(kind, sum(questions.values()))), f"{100 * share:.1f} %"]
        for kind, share in answers.accuracy.items()
    ]
    print(markdown(["kind", "questions", "exact"], lines))
    accuracy = {kind: round(share, 4) for kind, share in answers.accuracy.items()}
    result = {"scenes": args.scenes, "seed": args.seed, "questions": questions, "accuracy": accuracy}
    write_json(args.json or args.weights / "accuracy.json", result)


if __name__ == "__main__":
    main()
