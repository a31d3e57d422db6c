"""How long tokenprune takes to import, and its command to answer: interleaved runs, medians.

    python benchmarks/import_time.py --runs 9

Each run is a process of its own. Imports are timed under `python -X importtime`: what counts is what the interpreter
reports for tokenprune and for everything that is imported because of it; torch and transformers come first and count
apart. Commands are timed from the start of the process to its end, beside an interpreter that does nothing and one that
imports torch. Prints two Markdown tables, and the slowest modules of the last way to import.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time

BASE = "import torch, transformers"
MODEL = f"{BASE}; from transformers import LlavaForConditionalGeneration"
WAYS = (
    (BASE, "import tokenprune"),
    (BASE, "from tokenprune import Scorer, Seen, hookimpl"),
    (MODEL, "from tokenprune import prune"),
)
TAB = {"_TOKENPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "tokenprune swe", "COMP_CWORD": "1"}
TOKENPRUNE = "import sys; from tokenprune.__main__ import main; sys.argv[0] = 'tokenprune'; main()"
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "python -c pass": (["-c", "pass"], {}),
    "python -c 'import torch'": (["-c", "import torch"], {}),
    **{
        f"tokenprune {line}": (["-c", TOKENPRUNE, *line.split()], {})
        for line in (
            *("--version", "--help", "sweep --help", "demoo"),
            *("ls", "ls recipes", "show fastv@128", "check fastv", "explain fastv"),
        )
    },
    "tokenprune swe[TAB]": (["-c", TOKENPRUNE], TAB),
}
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


def answer(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Milliseconds of a whole process: of the clock, and of the processor."""
    start, before = time.perf_counter(), os.times()
    command, where = [sys.executable, *arguments], {**os.environ, **environment}
    subprocess.run(command, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # a typo fails
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return 1000 * (time.perf_counter() - start), 1000 * busy


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    found: dict[str, list[tuple[float, float]]] = {ours: [] for _, ours in WAYS}
    answers: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    slowest: list[tuple[float, str]] = []
    for turn in range(runs + 1):
        for base, ours in WAYS:
            before, more, slowest = measure(f"{base}; {ours}")
            if turn:  # the first round warms up the file cache
                found[ours].append((before, more))
        for name, how in COMMANDS.items():
            both = answer(*how)
            if turn:
                answers[name].append(both)
    print("| after | code | before it | more (lowest to highest) |\n|---|---|---|---|")
    for base, ours in WAYS:
        befores, mores = zip(*found[ours], strict=True)
        spread = f"{statistics.median(mores):.0f} ms ({min(mores):.0f} to {max(mores):.0f})"
        print(f"| `{base}` | `{ours}` | {statistics.median(befores):.0f} ms | {spread} |")
    print("\n| command | from start to end (lowest to highest) | processor |\n|---|---|---|")
    for name, both_of_all in answers.items():
        clock, busy = zip(*both_of_all, strict=True)
        spread = f"{statistics.median(clock):.0f} ms ({min(clock):.0f} to {max(clock):.0f})"
        print(f"| `{name}` | {spread} | {statistics.median(busy):.0f} ms |")
    print("\nslowest of the last way to import, imports below included:")
    for ms, name in slowest[:10]:
        print(f"{ms:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
