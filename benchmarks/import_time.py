"""How long `import tokenprune` takes on top of torch and transformers: interleaved runs, medians.

    python benchmarks/import_time.py --runs 9

Each run is a process of its own under `python -X importtime`; a run's time is what its top-level imports add up to.
Prints a Markdown table, and the slowest modules below tokenprune of the last run.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys

BASE = "import torch, transformers"
MODEL = f"{BASE}; from transformers import LlavaForConditionalGeneration"
WAYS = {
    BASE: None,
    f"{BASE}; import tokenprune": BASE,
    f"{BASE}; from tokenprune import Scorer, Seen, hookimpl": BASE,
    MODEL: None,
    f"{MODEL}; from tokenprune import prune": MODEL,
}
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")


def measure(code: str) -> tuple[float, list[tuple[float, str]]]:
    """Milliseconds of all imports of a new process, and those of each module of tokenprune, imports below included."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    rows = [match.groups() for match in map(LINE.match, done.stderr.splitlines()) if match]
    total = sum(int(own) for own, *_ in rows) / 1000
    ours = [(int(whole) / 1000, name) for _, whole, _, name in rows if name.split(".")[0] == "tokenprune"]
    return total, sorted(ours, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    found: dict[str, list[float]] = {code: [] for code in WAYS}
    slowest: list[tuple[float, str]] = []
    for turn in range(runs + 1):
        for code in WAYS:
            total, slowest = measure(code)
            if turn:  # the first one warms up the file cache
                found[code].append(total)
    print("| code | ms | more than without tokenprune (lowest to highest) |\n|---|---|---|")
    for code, before in WAYS.items():
        more = ""
        if before:
            pairs = [after - without for after, without in zip(found[code], found[before], strict=True)]
            more = f"{statistics.median(pairs):.0f} ms ({min(pairs):.0f} to {max(pairs):.0f})"
        print(f"| `{code}` | {statistics.median(found[code]):.0f} | {more} |")
    print("\nslowest below tokenprune, in the last row:")
    for time, name in slowest[:8]:
        print(f"{time:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
