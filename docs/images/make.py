"""Makes docs/images/overlay.png, offline: `python docs/images/make.py`. It is the picture that `make demo` writes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tokenprune.lab import demo
from tokenprune.lab.loading import load_model
from tokenprune.lab.pico import scenes

QUESTION = "read the digits"


def panels() -> list[tuple[Image.Image, str]]:
    """The picture, then what each recipe leaves of it, with its answer."""
    scene = next(scenes.held_out(seed=0))
    sides, _, _ = demo.compare(load_model("pico"), scene.picture, {"read": QUESTION}, demo.RECIPES, demo.BUDGET, runs=1)
    return [(side.left, f"{side.name}\n{side.answers['read']}") for side in sides]


if __name__ == "__main__":
    path = Path(__file__).parent / "overlay.png"
    demo.sheet(panels()).quantize(128).save(path, optimize=True)
    print(path.name, path.stat().st_size, "bytes")
