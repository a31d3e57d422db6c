"""Files that are whole or not there, and outputs looked at before the work for them begins."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
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


def cache_folder() -> Path:
    """Where what was measured of models is remembered."""
    root = os.environ.get("TOKENPRUNE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tokenprune"
    return Path(root).expanduser()


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
