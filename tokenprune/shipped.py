"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path


def configs() -> Path:
    """The folder of shipped configs: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"
