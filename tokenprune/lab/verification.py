"""Model types checked by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import TokenpruneError, UnknownNameError
from ..verify.trust import verify, verify_type
from ..verify.verdict import Verdict
from .families import model_types
from .loading import PICO

LISTED = "`tokenprune ls families` lists them. Or give a folder, its config.json, or a hub id"


def verify_all(names: Iterable[str]) -> None:
    """One after the other; each is remembered as soon as it is checked."""
    for name in names:
        verify_type(name)


def verify_named(name: str) -> Verdict:
    """Check a model type of transformers by its default config, or a model by its own.

    Args:
        name: a model type, a local folder or config.json, a hub id, or pico.

    Raises:
        UnknownNameError: it is none of these.
        TokenpruneError: there is no config that transformers knows.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    types, path = model_types(), PICO if name == "pico" else Path(name)
    if name in types or name in CONFIG_MAPPING:
        return verify_type(name)
    if not path.exists() and "/" not in name:
        raise UnknownNameError("model type", name, types, LISTED)
    try:
        if path.is_file():
            return verify(AutoConfig.for_model(**json.loads(path.read_text())))
        config = AutoConfig.from_pretrained(str(path) if path.exists() else name, trust_remote_code=False)
    except Exception as error:  # whatever a config class, a file or a hub can raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TokenpruneError(f"{name} has no config of a model that transformers knows: {reason}") from error
    return verify(config)
