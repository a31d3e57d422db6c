"""Files that are whole or not there: one written at once, one that grows by finished rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import TokenpruneError


def write(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one beside it; its folder is made. Raises TokenpruneError if that cannot be."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise TokenpruneError(f"cannot write {path}: {error.strerror or error}. Give a place that can be") from error


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, in the same way."""
    write(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if there is none, or none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])


class Rows:
    """Finished parts of a long measurement, a JSON line each, so that a killed run goes on where it was.

    The first line holds the settings: rows of other ones are refused, never mixed. A row that was cut short, and what
    follows it, is measured again. Only keys and places are in memory.

    Args:
        path: of the `.jsonl` file; it is made.
        settings: everything the rows depend on, as JSON.

    Raises:
        TokenpruneError: the file holds something else, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self._at = path, dict[str, int]()
        settings = json.loads(json.dumps(settings))
        if not path.exists():
            write(path, json.dumps(settings) + "\n")
            return
        try:
            self._read(settings)
        except OSError as error:
            raise TokenpruneError(f"cannot read {path}: {error.strerror or error}. Give another place") from error

    def _read(self, settings: Mapping[str, Any]) -> None:
        with self.path.open("rb") as file:
            found = _parsed(file.readline())
            if found != settings:
                differ = [name for name in settings if not found or found.get(name) != settings[name]]
                raise TokenpruneError(
                    f"{self.path} holds rows of other settings ({', '.join(differ) or 'more of them'}): give another "
                    "output folder, or delete that file to measure anew"
                )
            end = file.tell()
            while (row := _parsed(file.readline())) and "key" in row:
                self._at[row["key"]] = end
                end = file.tell()
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def __getitem__(self, key: str) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self._at[key])
            return json.loads(file.readline())

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a finished row and have it on the disk."""
        try:
            with self.path.open("ab") as file:
                self._at[key] = file.tell()
                file.write(json.dumps({"key": key, **row}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise TokenpruneError(f"cannot add to {self.path}: {reason}. Make room and run it again") from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line that holds an object, or None."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
