"""What each registered scorer costs: median milliseconds for 576 and 2880 visual tokens, and their share of a prefill.

    python benchmarks/scorers.py

Random states in the geometry of a decoder 16 x 1024, whose unpruned prefill is measured in the same process; a third
of the tokens stay of 576, 640 of 2880. States of the vision tower are there ready-made, of pictures of 24 x 24 tokens.
`--width 4096 --depth 32 --head 128` is LLaVA-1.5-7B (16 bit, a GPU).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import Scorer, Seen
from tokenprune.errors import TokenpruneError
from tokenprune.outputs import write_json
from tokenprune.registry import registry
from tokenprune.seen.prompt import Plain
from tokenprune.seen.vision import Vision

IMAGE, VISUAL = 5, 576
SIZES = {576: 192, 2880: 640}
"""Visual tokens, and how many of them stay."""


def build(width: int, depth: int, vocabulary: int, dtype: torch.dtype) -> Any:
    """A LLaVA of this decoder geometry behind a tower of a single small block."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
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
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
        return LlavaForConditionalGeneration(config).eval().to(dtype)


def median_ms(run: Callable[[], object], times: int) -> float:
    """Of `times` runs after one that warms up."""
    sync: Callable[[], object] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    found = []
    for _ in range(times + 1):
        sync()
        start = time.perf_counter()
        run()
        sync()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found[1:])


def shown(n: int, keep: int, text: int, width: int, head: int, dtype: torch.dtype) -> Callable[[], Seen]:
    """Makes a prompt of n visual tokens and some text at layer 2, all states random; nothing in it is cached yet."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p, heads = n + text, width // head

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    given = {name: rand(heads, p, head) for name in ("queries", "keys", "values")}
    tower = {"cls_attention": rand(n).softmax(0), "received": rand(n).exp(), "keys": rand(n, head)}
    places = torch.cartesian_prod(*(torch.arange(size, device=device) for size in (n // VISUAL, 24, 24)))
    pictures = Vision.of(places, features=rand(n, width), **tower)
    states, embeddings = rand(p, width), rand(p, width)
    visual = torch.arange(5, 5 + n, device=device)
    angles = torch.arange(p, device=device)[:, None] * 10000.0 ** (-torch.arange(0, head, 2, device=device) / head)
    cos, sin = (table.repeat(1, 2).to(dtype) for table in (angles.cos(), angles.sin()))

    def rotate(states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        first, second = states.chunk(2, dim=-1)
        c, s = (cos, sin) if rows is None else (cos[rows], sin[rows])
        return states * c + torch.cat((-second, first), dim=-1) * s

    return lambda: Seen(
        layer=2,
        keep=keep,
        ids=torch.arange(p, device=device),
        columns=visual,
        visual=visual,
        question=text - 5,
        states=states,
        source=Plain(
            given,
            rotation=rotate,
            scale=head**-0.5,
            normalise=lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:]),
            entered=(embeddings, visual),
            seen=Vision(pictures.places, pictures.read),
        ),
    )


@torch.inference_mode()
def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of scorers; all by default")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--head", type=int, default=64, help="head size of the scored states")
    parser.add_argument("--text", type=int, default=60)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    model = build(args.width, args.depth, 32000, dtype)
    prefill = {}
    for n in SIZES:
        ids = torch.randint(10, 32000, (1, n + args.text))
        ids[:, 5 : 5 + n] = IMAGE
        pixels = torch.randn(n // VISUAL, 3, 336, 336, dtype=dtype).to(model.device)
        inputs: dict[str, Any] = {"input_ids": ids.to(model.device), "pixel_values": pixels}
        prefill[n] = median_ms(lambda inputs=inputs: model(**inputs, logits_to_keep=1), min(args.times, 3))
    rows: dict[str, dict[str, float]] = {}
    found = registry().entries["scorer"].items()
    scorers = {name: entry.part for name, entry in found if issubclass(entry.part, Scorer)}
    for name in track(args.only or scorers, description="scorers", console=Console(stderr=True)):
        rows[name] = {}
        for n, keep in SIZES.items():
            make = shown(n, keep, args.text, args.width, args.head, dtype)
            try:
                ms = median_ms(lambda make=make, name=name: scorers[name]().score(make()), args.times)
            except TokenpruneError as error:  # it reads what is not there
                Console(stderr=True).print(f"{name} is left out: {error}")
                break
            rows[name][f"ms_{n}"], rows[name][f"share_{n}"] = ms, ms / prefill[n]
    heads = [f"{what} {n}" for n in SIZES for what in ("ms at", "of the prefill at")]
    table = Table("scorer", *heads, caption="prefill: " + ", ".join(f"{ms:.0f} ms at {n}" for n, ms in prefill.items()))
    for name, row in rows.items():
        if row:
            cells = [f"{row[f'ms_{n}']:.1f}|{row[f'share_{n}']:.2%}".split("|") for n in SIZES]
            table.add_row(name, *(cell for pair in cells for cell in pair))
    Console(width=100).print(table)
    if args.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        write_json(args.json, {"settings": settings, "prefill_ms": prefill, "rows": rows})


if __name__ == "__main__":
    main()
