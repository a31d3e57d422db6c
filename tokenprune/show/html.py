"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from .overlay import HEAT
from .report import Report

LONGEST, SHORTEST = 1600, 240  # pixels of an embedded picture's sides, as stored and as shown
COLOURS = ", ".join("rgb({} {} {})".format(*colour) for colour in HEAT.tolist())
STYLE = """
:root { color-scheme: light dark; --text: #1d2127; --soft: #5b6470; --line: #d9dde3; --page: #f6f7f9; --card: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #a2abb8; --line: #343b46; --page: #14171c; --card: #1c2027 }
}
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 62em; padding: 1.5em 1em 3em;
  color: var(--text); background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.6em; line-height: 1.25; margin: 0 0 .8em } h2 { font-size: 1.15em; margin: 0 0 .6em }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6em; padding: 1.1em; margin: 0 0 1em }
section > :last-child { margin-bottom: 0 }
p { margin: .3em 0 } .asked { display: flex; flex-wrap: wrap; gap: 1.2em 2em }
dl { margin: 0; flex: 1; min-width: min(100%, 16em); display: grid; grid-template-columns: max-content 1fr;
  gap: .3em 1em; align-content: start }
dt, figcaption, footer { color: var(--soft) } dd { margin: 0; white-space: pre-wrap }
.answer { font-weight: 600; font-size: 1.15em; line-height: 1.35 }
table { border-collapse: collapse; margin: 0 0 .8em }
th, td { border-bottom: 1px solid var(--line); padding: .35em 1.4em .35em 0; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 400 } tr :first-child { white-space: nowrap }
tr :nth-child(2) { overflow-wrap: normal }
.figures { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0; max-width: 100% }
img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; border-radius: .3em }
figcaption { font-size: .9em; margin-top: .3em }
.bar { display: grid; grid-template-columns: auto auto; justify-content: space-between; font-size: .8em;
  color: var(--soft) }
.bar i { grid-area: 1 / 1 / 2 / 3; height: .8em; border-radius: .2em;
  background: linear-gradient(90deg, COLOURS) }
footer { font-size: .9em }
@media (max-width: 42em) { figure:not(.wide) { max-width: calc(50% - .5em) } body { padding-top: 1em } }
""".replace("COLOURS", COLOURS)


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; `stage` is the number of its stage in the report.

    `scale` is what the darkest and the brightest colour stand for, where colours stand for scores.
    """

    caption: str
    picture: Image.Image
    stage: int | None = None
    scale: tuple[float, float] | None = None


def render(
    title: str,
    report: Report,
    figures: Sequence[Figure] = (),
    asked: Mapping[str, str] | None = None,
    made_by: Mapping[str, str] | None = None,
) -> str:
    """The page: what was asked, stages, KV cache and FLOPs, then the figures stage by stage.

    Args:
        figures: those without a stage (what was shown) stand beside what was asked.
        asked: what was asked and answered, by what it is.
        made_by: versions, by what they are of.
    """
    shown = _figures(figure for figure in figures if figure.stage is None)
    talk = "".join(
        f'<dt>{escape(name)}</dt><dd class="{escape(name.lower())}">{escape(text) or "(nothing)"}</dd>\n'
        for name, text in (asked or {}).items()
    )
    rows = "".join(
        f"<tr><td>{stage.where}</td><td>{escape(stage.scorer)}</td><td>{kept}</td></tr>\n"
        for stage in report.stages
        for kept in [", ".join(f"{kept}/{total}" for kept, total in zip(stage.kept, stage.total, strict=True))]
    )
    head = "<tr><th>after</th><th>scorer</th><th>visual tokens kept, per prompt</th></tr>"
    table = f"<table>{head}\n{rows}</table>" if rows else "<p>Nothing was dropped.</p>"
    costs = "".join(f"<p>{escape(line)}</p>" for line in report.costs.splitlines())
    talk = f"<dl>{talk}</dl>" if talk else ""
    parts = [
        f'<div class="asked">{shown}{talk}</div>' if shown or talk else "",
        f"<h2>What was kept and what it cost</h2>{table}{costs}",
    ]
    for number, stage in enumerate(report.stages):
        if drawn := _figures(figure for figure in figures if figure.stage == number):
            parts.append(f"<h2>After {stage.where}</h2>{drawn}")
    body = "\n".join(f"<section>{part}</section>" for part in parts if part)
    versions = " · ".join(f"{escape(name)} {escape(version)}" for name, version in (made_by or {}).items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n<footer>{versions}</footer>\n</body></html>\n"
    )


def colour_bar(low: str, high: str) -> str:
    """HTML: the colours of scores between what the darkest and the brightest stand for; `STYLE` has its looks."""
    return f'<div class="bar"><span>{escape(low)}</span><i></i><span>{escape(high)}</span></div>'


def _figures(figures: Iterable[Figure]) -> str:
    drawn = []
    for figure in figures:
        width, height = figure.picture.size
        bar = "" if figure.scale is None else colour_bar(*(f"{end:.3g}" for end in figure.scale))
        drawn.append(
            f'<figure{" class=wide" if width > 2 * height else ""}><img alt="{escape(figure.caption)}" '
            f"{_embedded(figure.picture)}><figcaption>{escape(figure.caption)}</figcaption>{bar}</figure>"
        )
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _embedded(picture: Image.Image) -> str:
    if max(picture.size) > LONGEST:
        picture = picture.copy()
        picture.thumbnail((LONGEST, LONGEST))
    data = io.BytesIO()
    picture.save(data, "PNG")
    shown = picture.width * -(-SHORTEST // min(picture.size))
    return f'width="{shown}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"'
