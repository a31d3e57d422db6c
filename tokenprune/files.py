"""Writing files so that an interruption leaves the old one or the new one, never half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """The whole file or none of it; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    new.write_text(text)
    os.replace(new, path)


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, in the same way."""
    write(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if there is none, or none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
