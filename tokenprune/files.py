"""Files that are whole or not there, outputs looked at before the work for them begins, and rows of measurements."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import TokenpruneError


def check_output(path: Path, folder: bool = False) -> None:
    """Refuse an output that cannot be written, before the work for it begins. Nothing is made, and nothing left there.

    Args:
        path: of the file, or of the folder. Folders that are missing are made when it is written.
        folder: whether files go into `path`.

    Raises:
        TokenpruneError: something else is there, it would lie in a file, or its place is read-only.
    """
    home = path if folder else path.parent
    try:
        if not folder and _is_there(path) and not path.is_file():
            raise OSError(errno.EINVAL, "that is a folder" if path.is_dir() else "no ordinary file is there")
        at = next((each for each in (home, *home.parents) if _is_there(each)), home)
        if not at.is_dir():
            raise OSError(errno.ENOTDIR, f"{'that' if at == path else at} is no folder")
        trial = _beside(at / "trial")
        try:  # permissions do not tell: a disk may be mounted read-only
            trial.touch(exist_ok=False)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process, on no other machine, takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _cannot_write(path: Path, error: OSError) -> TokenpruneError:
    return TokenpruneError(f"cannot write {path}: {error.strerror or error}. Give a place that can be")


def write(path: Path, content: str | bytes) -> None:
    """Write a file through one beside it, onto the disk; its folder is made. TokenpruneError if that cannot be."""
    new = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_all(folder: Path, results: Mapping[str, str | bytes | None]) -> list[Path]:
    """Write results by name and return where they are. None is one that was left out: no old one stays there for it."""
    for name, content in results.items():
        if content is not None:
            write(folder / name, content)
            continue
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(folder / name, error) from error
    return [folder / name for name, content in results.items() if content is not None]


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
