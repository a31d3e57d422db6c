"""What was measured as a table, a page and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .. import plots
from ..results import Results, markdown
from .measured import Measured

HEADER = [
    *("recipe", "tokens", "tower ms", "tower speed-up", "prefill ms", "speed-up", "bound", "of bound", "scoring"),
    *("decode ms/token", "total ms", "total speed-up", "KV MiB", "peak MiB", "GFLOPs", "counted"),
]


def table(found: Sequence[Measured]) -> list[list[str]]:
    """Lines below `HEADER`: medians, with the lowest and highest prefill."""
    lines = []
    for one in found:
        prefill, peak = one.spread["prefill_ms"], one.spread["peak_mib"]
        assert prefill is not None
        lines.append(
            [
                one.name,
                f"{one.average:.1f}",
                f"{one.median('tower_ms'):.1f}",
                f"{one.tower_speed_up:.2f}x of {one.tower_bound:.2f}x",
                f"{prefill.median:.1f} ({prefill.low:.1f}-{prefill.high:.1f})",
                f"{one.speed_up:.2f}x",
                f"{one.bound:.2f}x",
                f"{one.speed_up / one.bound:.0%}",
                f"{one.scoring_share:.1%}",
                f"{one.median('decode_ms_per_token'):.2f}",
                f"{one.median('total_ms'):.0f}",
                f"{one.total_speed_up:.2f}x",
                f"{one.median('kv_mib'):.2f}",
                "n/a" if peak is None else f"{peak.median:.0f}",
                f"{one.flops.formula / 1e9:.2f}",
                f"{one.flops.counted / one.flops.formula - 1:+.2%}",
            ]
        )
    return lines


NOTES = """
Medians over {runs} rounds, in each of which all forms ran in turn; prefill with its lowest and highest. Speed-ups are
medians over the pairs of one round. `bound`: unpruned / pruned FLOPs of decoder and head, and for the tower those that
torch counts. `scoring`: time inside scorers, from runs of their own, as a share of the pruned prefill (of tower and
prefill, where the recipe prunes inside the tower). `KV MiB`: all that the cache held after the prefill.
`GFLOPs`: of the prefill, by formula; `counted`: how far torch's counter is from that, scorers apart. `peak MiB` is
known on GPUs. Answers have {new_tokens} tokens, whatever they say.
"""


def save(found: Sequence[Measured], folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """JSON, Markdown and, where there is matplotlib, a picture; returns what was written."""
    rows = [{**asdict(one), "plan": {str(layer): kept for layer, kept in one.plan.items()}} for one in found]
    return Results(folder, "bench", settings).save(
        {"rows": rows},
        texts={"bench.md": page(found, settings)},
        figures={"bench.png": partial(picture, found, settings)},
    )


def page(found: Sequence[Measured], settings: Mapping[str, Any]) -> str:
    """Markdown: the settings, the table and how to read it."""
    listed = "".join(f"- {key}: {value}\n" for key, value in settings.items() if value is not None)
    return f"# {settings['model']}\n\n{listed}\n{markdown(HEADER, table(found))}{NOTES.format(**settings)}"


def picture(found: Sequence[Measured], settings: Mapping[str, Any]) -> bytes:
    """Milliseconds by phase beside the speed-up of the prefill and its bound, as PNG."""
    phases = {
        "tower": [one.median("tower_ms") for one in found],
        "prefill": [one.median("prefill_ms") for one in found],
        "decode": [one.median("decode_ms_per_token") * (settings["new_tokens"] - 1) for one in found],
    }
    ratios = {"measured": [one.speed_up for one in found], "bound of the FLOPs": [one.bound for one in found]}
    labels = (f"milliseconds, {settings['new_tokens']} tokens", "prefill, times as fast as unpruned")
    return plots.bars([one.name for one in found], phases, ratios, labels, str(settings["model"]))
