"""What came of a check, remembered for each model type and its decoder, by versions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers

from .. import outputs
from ..errors import TokenpruneError
from ..families.standard import Standard
from ..parts.adapter import Adapter
from ..registry.entries import types
from ..version import __version__

log = logging.getLogger("tokenprune")

ATTENTION = "attention rows == the model's own"


@dataclass(frozen=True)
class Comparison:
    """One thing that was compared.

    Attributes:
        name: what with what.
        failure: how it failed; None if it holds.
    """

    name: str
    failure: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    Attributes:
        model_type: of the model.
        decoder: its decoder's model type.
        switches: a digest of what is switched on in it.
        adapter: what it was checked with, as the path of a class.
        transformers: version that was checked.
        tokenprune: version that checked.
        comparisons: what was compared.
        reason: why nothing could be compared, or None.
    """

    model_type: str
    decoder: str
    switches: str
    adapter: str
    transformers: str
    tokenprune: str
    comparisons: tuple[Comparison, ...] = ()
    reason: str | None = None

    @property
    def refusal(self) -> str | None:
        """Why this type is not to be pruned; None if it is, be it by scorers that read no attention only."""
        failed = [one for one in self.comparisons if one.failure is not None and one.name != ATTENTION]
        return self.reason or (f"{failed[0].name}: {failed[0].failure}" if failed else None)

    @property
    def attention(self) -> str | None:
        """Why scorers may not read this type's attention; None if they may."""
        return next((one.failure for one in self.comparisons if one.name == ATTENTION), None)


def path_of(adapter: type[Adapter]) -> str:
    """What a verdict calls an adapter."""
    return f"{adapter.__module__}.{adapter.__qualname__}"


def remember(
    named: tuple[str, str, str], adapter: type[Adapter], comparisons: Sequence[Comparison], reason: str | None
) -> Verdict:
    made = Verdict(*named, path_of(adapter), transformers.__version__, __version__, tuple(comparisons), reason)
    try:
        outputs.write_json(_path(*named), asdict(made))
    except TokenpruneError as error:
        log.warning("what was verified of %s is not remembered: %s", made.model_type, error)
    return made


def remembered(config: Any) -> Verdict | None:
    """What an earlier check of this type with the standard adapter came to, with these versions."""
    found = _read(_path(*types(config)))
    return found if found is not None and found.adapter == path_of(Standard) else None


def all_remembered() -> dict[str, list[Verdict]]:
    """What every earlier check with these versions came to, by model type."""
    found: dict[str, list[Verdict]] = {}
    for path in sorted(_path("*", "*", "*").parent.glob(_path("*", "*", "*").name)):
        if (verdict := _read(path)) is not None:
            found.setdefault(verdict.model_type, []).append(verdict)
    return found


def _read(path: Path) -> Verdict | None:
    found = outputs.read_json(path)
    try:
        comparisons = tuple(Comparison(**one) for one in found.pop("comparisons"))
        return Verdict(**found, comparisons=comparisons)
    except (AttributeError, TypeError, KeyError):
        return None  # there is none, or nobody can read it: it is made anew


def _path(model_type: str, decoder: str, switches: str) -> Path:
    name = f"{model_type}-{decoder}-{switches}-transformers-{transformers.__version__}-tokenprune-{__version__}.json"
    return outputs.cache_folder() / "families" / name.replace("/", "_")
