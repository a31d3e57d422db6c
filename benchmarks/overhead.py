"""What pruning costs where it changes nothing: microseconds per decode step, and per prefill, besides the model's own.

    python benchmarks/overhead.py [--pairs 25] [--blocks 32] [--output FILE]

A decoder of many tiny blocks (hidden size 64) on one thread: nearly all of its time is Python, as with an eager model
of any size on a fast GPU. Each pair is a pruned and an unpruned run of the same length, one right after the other, in
turns; times are those of the thread, not of the clock. What is said is the median of their differences,
and its 95 % interval by resampling pairs.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokenprune

IMAGE, STEPS = 5, 20
RECIPES: dict[str, list[dict[str, Any]]] = {
    "one stage": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 8}}],
    "three stages": [
        {"scorer": "random", "schedule": {"name": "pyramid", "layers": ["1/4", "1/2", "3/4"], "ratio": 0.5}}
    ],
}


def build(blocks: int) -> Any:
    """A LLaVA of so many blocks, weights random."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config).eval()


def prompts(padded: bool) -> dict[str, torch.Tensor]:
    """Two prompts with a picture each, of one length or of two."""
    lengths = (9, 4) if padded else (9, 9)
    rows = [[0] * (9 - n) + [17, 18, 19] + [IMAGE] * 16 + [20 + i for i in range(n)] for n in lengths]
    ids = torch.tensor(rows)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


def prefill(model: Any, given: dict[str, torch.Tensor]) -> tuple[DynamicCache, torch.Tensor]:
    cache = DynamicCache(config=model.config.get_text_config())
    model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache, given["attention_mask"]


def decode(model: Any, cache: DynamicCache, mask: torch.Tensor) -> float:
    """Seconds of a step in a loop that passes one token and the mask: the median of many."""
    token, times = torch.full((len(mask), 1), 17), []
    for _ in range(STEPS):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        start = time.thread_time()
        model(input_ids=token, past_key_values=cache, attention_mask=mask, use_cache=True)
        times.append(time.thread_time() - start)
    return statistics.median(times)


def compare(
    model: Any, block: Callable[[], AbstractContextManager[Any]], measure: Callable[[], float], pairs: int
) -> dict[str, float]:
    """Microseconds that `block` adds to what `measure` times, by pairs in turns."""
    plain, added = [], []
    for number in range(pairs + 2):
        times = {}
        for pruned in ((True, False), (False, True))[number % 2]:
            with block() if pruned else nullcontext():
                times[pruned] = measure()
        if number >= 2:  # the first two warm up
            plain.append(1e6 * times[False])
            added.append(1e6 * (times[True] - times[False]))
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(added, k=len(added))) for _ in range(2000))
    return {
        "unpruned_us": round(statistics.median(plain), 1),
        "added_us": round(statistics.median(added), 1),
        "added_low_us": round(medians[50], 1),
        "added_high_us": round(medians[1949], 1),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build(options.blocks)
    found: dict[str, Any] = {}
    for recipe, passes in RECIPES.items():
        for padded in (False, True):
            given = prompts(padded)

            def once(given: dict[str, torch.Tensor] = given) -> float:
                return decode(model, *prefill(model, given))

            def start(given: dict[str, torch.Tensor] = given) -> float:
                begin = time.thread_time()
                prefill(model, given)
                return time.thread_time() - begin

            def block(passes: Any = passes) -> AbstractContextManager[Any]:
                return tokenprune.prune(model, {"prune": passes})

            batch = "padded" if padded else "unpadded"
            found[f"decode step, {recipe}, {batch}"] = compare(model, block, once, options.pairs)
            found[f"prefill, {recipe}, {batch}"] = compare(model, block, start, options.pairs)
    print(f"{options.blocks} blocks, hidden size 64, batch 2, one thread, {options.pairs} pairs; microseconds")
    for name, numbers in found.items():
        print(
            f"{name:38} {numbers['added_us']:7.0f} ({numbers['added_low_us']:.0f} to {numbers['added_high_us']:.0f})"
            f"  of {numbers['unpruned_us']:.0f}"
        )
    if options.output is not None:
        about = {
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "blocks": options.blocks,
            "pairs": options.pairs,
        }
        options.output.write_text(json.dumps({**about, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
