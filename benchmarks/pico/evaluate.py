"""Measure the tiny LLaVA as shipped: exact answers to questions about pictures with held-out handwriting."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import tokenprune
from tokenprune.budget import read
from tokenprune.pico.scenes import KINDS, held_out
from tokenprune.values import Budget

WEIGHTS = Path(__file__).resolve().parents[2] / "tokenprune" / "pico" / "tokenprune-pico"


@torch.no_grad()
def evaluate(
    folder: Path, scenes: int, seed: int, recipe: str | None = None, batch: int = 40, budget: Budget | None = None
) -> dict:
    """Ask every question of the first scenes of a seed, pruned or not; returns counts and shares of exact answers."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(folder)
    asked = [(scene.picture, question) for scene in islice(held_out(seed), scenes) for question in scene.questions]
    total, right, wrong = Counter(), Counter(), []
    for at in range(0, len(asked), batch):
        part = asked[at : at + batch]
        texts = [f"USER: <image>\n{question.text} ASSISTANT:" for _, question in part]
        inputs = processor(images=[picture for picture, _ in part], text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device)
        with nullcontext() if recipe is None else tokenprune.prune(model, recipe, budget=budget):
            output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        for (_, question), said in zip(part, processor.batch_decode(output, skip_special_tokens=True), strict=True):
            total[question.kind] += 1
            right[question.kind] += said.strip() == question.answer
            if said.strip() != question.answer:
                wrong.append(
                    {"kind": question.kind, "question": question.text, "answer": question.answer, "said": said}
                )
    return {
        "scenes": scenes,
        "seed": seed,
        **({"recipe": recipe} if recipe else {}),
        **({"budget": budget} if budget is not None else {}),
        "questions": dict(total),
        "accuracy": {kind: round(right[kind] / total[kind], 4) for kind in KINDS}
        | {"all": round(right.total() / total.total(), 4)},
        "wrong": wrong,
    }


def main() -> None:
    """Print the table and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--scenes", type=int, default=500, help="each asks one question of each of the five kinds")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--recipe", help="prune with this recipe; then nothing is written unless --json says where")
    parser.add_argument("--budget", help="rescale the recipe to this average over the layers: 48 tokens, or 1/3")
    parser.add_argument("--json", type=Path, help="where the numbers go (default: accuracy.json beside the weights)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.budget is not None and args.recipe is None:
        parser.error(f"a budget of {args.budget} needs a recipe to rescale: add --recipe NAME")
    budget = None if args.budget is None else read(args.budget)
    result = evaluate(args.weights, args.scenes, args.seed, args.recipe, budget=budget)
    wrong = result.pop("wrong")
    print("| kind | questions | exact |\n|---|---|---|")
    for kind, share in result["accuracy"].items():
        print(f"| {kind} | {result['questions'].get(kind, sum(result['questions'].values()))} | {100 * share:.1f} % |")
    for case in wrong[:10]:
        print(f"wrong: {case['question']} {case['answer']!r}, said {case['said']!r}")
    path = args.json or (None if args.recipe else args.weights / "accuracy.json")
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
