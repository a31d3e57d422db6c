"""How long tokenprune takes to import once torch and transformers are there: interleaved runs, medians.

    python benchmarks/import_time.py --runs 9

Each run is a process of its own under `python -X importtime`. What counts is what the interpreter reports for
tokenprune and for everything that is imported because of it; torch and transformers come first and count apart.
Prints a Markdown table, and the slowest modules of the last way.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys

BASE = "import torch, transformers"
MODEL = f"{BASE}; from transformers import LlavaForConditionalGeneration"
WAYS = (
    (BASE, "import tokenprune"),
    (BASE, "from tokenprune import Scorer, Seen, hookimpl"),
    (MODEL, "from tokenprune import prune"),
)
LINE = re.compile(r"import time:\s+\d+ \|\s+(\d+) \| ( *)(\S+)")


def measure(code: str) -> tuple[float, float, list[tuple[float, str]]]:
    """Milliseconds of a new process's imports: of all before tokenprune, of tokenprune's, and of the latter by module.

    Imports below a module are in its time. A line comes when its module is done; top-level ones are not indented.
    """
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    rows = [(int(ms) / 1000, not indent, name) for ms, indent, name in LINE.findall(done.stderr)]
    start = next(i for i, (_, top, name) in enumerate(rows) if top and name == "transformers")
    start = max([start, *(i for i, (_, top, name) in enumerate(rows) if top and name.startswith("transformers."))])
    before = sum(ms for ms, top, _ in rows[: start + 1] if top)
    after = rows[start + 1 :]
    return before, sum(ms for ms, top, _ in after if top), sorted(((ms, name) for ms, _, name in after), reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    found: dict[str, list[tuple[float, float]]] = {ours: [] for _, ours in WAYS}
    slowest: list[tuple[float, str]] = []
    for turn in range(runs + 1):
        for base, ours in WAYS:
            before, more, slowest = measure(f"{base}; {ours}")
            if turn:  # the first round warms up the file cache
                found[ours].append((before, more))
    print("| after | code | before it | more (lowest to highest) |\n|---|---|---|---|")
    for base, ours in WAYS:
        befores, mores = zip(*found[ours], strict=True)
        spread = f"{statistics.median(mores):.0f} ms ({min(mores):.0f} to {max(mores):.0f})"
        print(f"| `{base}` | `{ours}` | {statistics.median(befores):.0f} ms | {spread} |")
    print("\nslowest of the last row, imports below included:")
    for ms, name in slowest[:10]:
        print(f"{ms:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
