"""Prefill with and without pruning, interleaved in one process: medians, and how near they come to the FLOPs bound.

    python benchmarks/prefill.py --keep 192 128

A LLaVA of random weights (random weights cost what trained ones do): 576 visual and 60 text tokens, EntropyPrune's
score at layer 2. The bound is FLOPs without pruning / FLOPs with, over tower + decoder + head. `--tower` adds CLIP-L's
geometry, timed and counted as part of the prefill.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokenprune
from tokenprune.flops import Geometry

IMAGE, VISUAL = 5, 576


def build(width: int, depth: int, vocabulary: int, tower: bool, dtype: torch.dtype) -> Any:
    """A LLaVA of this decoder geometry; its tower is CLIP-L/336, or one of a single small block."""
    vision = CLIPVisionConfig(
        hidden_size=1024 if tower else 64,
        intermediate_size=4096 if tower else 64,
        num_hidden_layers=24 if tower else 2,
        num_attention_heads=16 if tower else 1,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        vocab_size=vocabulary,
        pad_token_id=0,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
        )
    return model.eval().to(dtype)


def fixed_flops(config: Any) -> float:
    """Tower and head, which pruning does not change: the head reads one row, the tower 577 tokens."""
    vision, text = config.vision_config, config.text_config
    d, m, n = vision.hidden_size, vision.intermediate_size, VISUAL + 1
    blocks = vision.num_hidden_layers * (4 * n * n * d + 8 * n * d * d + 4 * n * d * m)
    patches = 2 * VISUAL * 3 * vision.patch_size**2 * d
    projector = 2 * VISUAL * (d * text.hidden_size + text.hidden_size**2)
    return blocks + patches + projector + 2 * text.hidden_size * text.vocab_size


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, nargs="+", default=[192, 128], help="visual tokens kept from the layer on")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--scorer", default="entropy")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--text", type=int, default=60)
    parser.add_argument("--tower", action="store_true", help="with CLIP-L/336's geometry")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(args.width, args.depth, args.vocabulary, args.tower, getattr(torch, args.dtype))
    ids = torch.randint(10, args.vocabulary, (1, VISUAL + args.text))
    ids[:, 5 : 5 + VISUAL] = IMAGE
    pixels = torch.randn(1, 3, 336, 336, dtype=model.dtype)
    inputs = {"input_ids": ids.to(model.device), "pixel_values": pixels.to(model.device)}
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    @torch.inference_mode()
    def prefill() -> float:
        sync()
        start = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        sync()
        return time.perf_counter() - start

    forms: dict[int | None, list[float]] = {None: [], **{keep: [] for keep in args.keep}}
    for _ in track(range(args.pairs + 1), description="prefills", console=Console(stderr=True)):
        for keep, times in forms.items():
            schedule = {"name": "fixed", "layer": args.layer, "keep": keep}
            recipe = {"prune": [{"scorer": args.scorer, "schedule": schedule}]}
            with nullcontext() if keep is None else tokenprune.prune(model, recipe):
                times.append(prefill())

    geometry, same = Geometry.of(model.config), fixed_flops(model.config)
    full = geometry.prefill_flops({}, VISUAL, args.text) + same
    table = Table("kept", "median ms", "min", "max", "speed-up", "FLOPs bound", "share of bound")
    rows = []
    for keep, times in forms.items():
        counted = times[1:]  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(forms[None][1:], counted, strict=True))
        plan = {} if keep is None else {args.layer: keep}
        bound = full / (geometry.prefill_flops(plan, VISUAL, args.text) + same)
        row = {
            "kept": keep or VISUAL,
            "median_ms": 1000 * statistics.median(counted),
            "min_ms": 1000 * min(counted),
            "max_ms": 1000 * max(counted),
            "speed_up": ratio,
            "flops_bound": bound,
            "share_of_bound": ratio / bound,
        }
        rows.append(row)
        table.add_row(str(row["kept"]), *(f"{row[k]:.0f}" for k in ("median_ms", "min_ms", "max_ms")),
                      f"{ratio:.2f}x", f"{bound:.2f}x", f"{ratio / bound:.3f}")  # fmt: skip
    Console().print(table)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"settings": settings, "machine": platform.processor(), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
