"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from itertools import groupby

from PIL import Image

from .report import Report

LONGEST, SHORTEST = 1600, 240  # pixels of an embedded picture's sides, as stored and as shown
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse } th, td { border: 1px solid #ccc; padding: .3em .8em; text-align: left }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; max-width: 100% } figcaption { color: #666 }
img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ccc }
"""

Figure = tuple[str, str, Image.Image]
"""layer, caption, picture."""


def render(title: str, report: Report, figures: Sequence[Figure]) -> str:
    """The page: stages, KV cache and FLOPs, then the figures by layer."""
    rows = "".join(
        f"<tr><td>{stage.where}</td><td>{escape(stage.scorer)}</td><td>{kept}</td></tr>\n"
        for stage in report.stages
        for kept in [", ".join(f"{kept}/{total}" for kept, total in zip(stage.kept, stage.total, strict=True))]
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<table><tr><th>layer</th><th>scorer</th><th>visual tokens kept, per prompt</th></tr>\n{rows}</table>",
        *(f"<p>{escape(line)}</p>" for line in report.costs.splitlines()),
    ]
    for layer, group in groupby(figures, key=lambda figure: figure[0]):
        parts.append(f"<h2>layer {layer}</h2>")
        parts += [
            f'<figure><img alt="{escape(caption)}" {_embedded(picture)}>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for _, caption, picture in group
        ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _embedded(picture: Image.Image) -> str:
    if max(picture.size) > LONGEST:
        picture = picture.copy()
        picture.thumbnail((LONGEST, LONGEST))
    data = io.BytesIO()
    picture.save(data, "PNG")
    shown = picture.width * -(-SHORTEST // min(picture.size))
    return f'width="{shown}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"'
