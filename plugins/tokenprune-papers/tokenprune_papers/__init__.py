"""Published methods: each is a file here, with one line in a hook below, and a recipe."""

from __future__ import annotations

from pathlib import Path

from tokenprune import hookimpl


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
