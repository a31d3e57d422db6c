"""Makes docs/images/overlay.png, offline: `python docs/images/make.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import tokenprune
from tokenprune.loading import load_model
from tokenprune.pico import scenes

SEED = 4
QUESTION = "read the digits"
SIDE, GAP, TEXT = 288, 16, 52


def panels() -> list[tuple[Image.Image, str]]:
    """The picture, then what two recipes leave of it, each with its answer."""
    picture = next(scenes.held_out(seed=SEED)).picture
    pico = load_model("pico")
    inputs = pico.inputs(QUESTION, [picture])
    made = [(picture, f"all 144 visual tokens\n“{QUESTION}”: {pico.answer(inputs)}")]
    for recipe in ("entropyprune", "fastv"):
        with tokenprune.prune(pico.model, recipe, budget=1 / 3) as pruning:
            answer = pico.answer(inputs)
        kept = pruning.report().stages[-1]
        made.append(
            (pruning.overlay(picture), f"{recipe}: {kept.kept[0]} from layer {kept.layer} on\nanswer: {answer}")
        )
    return made


def draw(made: list[tuple[Image.Image, str]]) -> Image.Image:
    sheet = Image.new("RGB", (GAP + len(made) * (SIDE + GAP), SIDE + TEXT + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for number, (picture, words) in enumerate(made):
        left = GAP + number * (SIDE + GAP)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, GAP))
        pen.multiline_text((left, SIDE + GAP + 8), words, fill="#333333", font=font, spacing=5)
    return sheet


if __name__ == "__main__":
    path = Path(__file__).parent / "overlay.png"
    draw(panels()).quantize(128).save(path, optimize=True)
    print(path.name, path.stat().st_size, "bytes")
