"""The folder of one measurement: rows as they are done, and in the end numbers, texts and figures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TokenpruneError
from ..outputs import read_json, write, write_all
from . import plots

UNPRUNED = "unpruned"
"""What is compared with is called so in every table: all visual tokens, in the same run."""


@dataclass(frozen=True)
class Results:
    """A folder with `rows` of a measurement, and then `NAME.json` with texts and figures beside it.

    Args:
        folder: made when the first file is written.
        name: of the measurement.
        settings: everything that its numbers depend on, as JSON: rows and numbers are kept with them.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Of the numbers."""
        return self.folder / f"{self.name}.json"

    @property
    def rows(self) -> Rows:
        return Rows(self.folder / "rows", self.settings)

    def check(self) -> None:
        """Refuse to take the place of numbers of other settings, see `check_settings`."""
        check_settings(self.path, self.settings)

    def save(
        self,
        numbers: Mapping[str, Any],
        *,
        texts: Mapping[str, str] | None = None,
        figures: Mapping[str, Callable[[], bytes]] | None = None,
        indent: int | None = 1,
    ) -> list[Path]:
        """Write everything by the names of files and return where it is; figures only where there is matplotlib.

        An old figure does not stay beside new numbers.
        """
        content = json.dumps({"settings": dict(self.settings), **numbers}, indent=indent) + "\n"
        written = write_all(self.folder, {self.path.name: content, **(texts or {})})
        return [*written, *write_all(self.folder, plots.draw(figures or {}))]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])


class Rows:
    """Finished parts of a long measurement, a file each, so that a killed run goes on where it was.

    A file is named by its row's key and all that the row depends on: rows of other settings lie beside it and are never
    read. It is whole or not there, so several processes may measure into one folder; at worst two of them measure the
    same row, and the later one stays. Nothing is kept in memory.

    Args:
        folder: of the rows; it is made.
        settings: everything that rows depend on besides their key, as JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))  # as it is read back: a tuple is a list

    def path(self, key: str) -> Path:
        """Of a row: a readable name, of what stands before a colon, and a digest of all that it depends on."""
        known = json.dumps([key, self._settings], sort_keys=True)
        readable = re.sub(r"[^A-Za-z0-9=.]+", "-", key.split(": ")[0])[:60].strip("-.")
        return self.folder / f"{readable}-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"

    def __contains__(self, key: str) -> bool:
        return self._read(key) is not None

    def __getitem__(self, key: str) -> dict[str, Any]:
        row = self._read(key)
        if row is None:
            raise TokenpruneError(f"{self.path(key)} is gone or was changed: run the same command again to measure it")
        return row

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Write a finished row and have it on the disk. Raises TokenpruneError if that cannot be."""
        write(self.path(key), json.dumps({"key": key, "settings": self._settings, "row": row}) + "\n")

    def _read(self, key: str) -> dict[str, Any] | None:
        """The row; None if there is none, or half of one, or something else."""
        found = read_json(self.path(key))
        if not isinstance(found, dict) or (found.get("key"), found.get("settings")) != (key, self._settings):
            return None
        row = found.get("row")
        return row if isinstance(row, dict) else None


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to take the place of results that were made under other settings. Raises TokenpruneError.

    Args:
        path: of the JSON file that is to be written, with its `settings` in it; it need not be there.
        settings: of the results to come.
    """
    there = read_json(path)
    found = there.get("settings") if isinstance(there, dict) else None
    if not isinstance(found, dict):
        return
    wanted = json.loads(json.dumps(settings))
    differ = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differ:
        raise TokenpruneError(
            f"{path} holds results of other settings ({', '.join(differ)}): give another output folder, or delete that "
            "file"
        )
