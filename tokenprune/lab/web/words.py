"""A comparison in words, as HTML."""

from __future__ import annotations

from html import escape

from .comparison import Comparison


def table(made: Comparison, truth: str = "") -> str:
    """HTML: both ways side by side, and the stages in words."""
    rows = {
        "answer": [escape(side.answer) or "(nothing)" for side in made.sides],
        "visual tokens": [f"{side.tokens:.4g} of {made.visual}" for side in made.sides],
        "their KV cache": [f"{side.kv_mib:.2f} MiB" for side in made.sides],
        "prefill FLOPs": [f"{side.flops_share:.0%}" for side in made.sides],
        "prefill time": [f"{side.prefill_ms:.1f} ms" for side in made.sides],
    }
    head = "".join(f"<th>{escape(side.name)}</th>" for side in made.sides)
    body = "".join(
        f'<tr class="{name.split()[-1]}"><th>{name}</th><td>{left}</td><td>{right}</td></tr>'
        for name, (left, right) in rows.items()
    )
    stages = [f"after {s.where}, {escape(s.scorer)} keeps {s.kept[0]} of {s.total[0]}" for s in made.stages]
    words = "; ".join(stages) or "Nothing was dropped: the recipe keeps as many tokens as there are"
    known = f"<p>The right answer is <b>{escape(truth)}</b>.</p>" if truth else ""
    blind = ", ".join(f"<b>{escape(word)}</b>" for word in made.unknown)
    known += f"<p>The model does not know the words {blind}: its answer is a guess.</p>" if blind else ""
    return (
        f'<table class="compared"><caption>{escape(made.question)}</caption><tr><th></th>{head}</tr>{body}</table>'
        f"{known}<p>{words[0].upper()}{words[1:]}.</p>"
    )
