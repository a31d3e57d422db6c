"""Model types that nobody wrote an adapter for: checked once, remembered, and then pruned like any other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers

from .. import outputs
from ..errors import TokenpruneError, UnsupportedModelError
from ..families.standard import Standard
from ..parts.adapter import Adapter
from ..registry import registry
from ..registry.entries import types
from ..version import __version__
from .check import ATTENTION, Comparison, check
from .prompt import without_columns

log = logging.getLogger("tokenprune")


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    Attributes:
        model_type: of the model.
        decoder: its decoder's model type.
        transformers: version that was checked.
        tokenprune: version that checked.
        comparisons: what was compared.
        reason: why nothing could be compared, or None.
    """

    model_type: str
    decoder: str
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


def verify(config: Any, adapter: Adapter | None = None) -> Verdict:
    """Check a model type on a tiny random model of a config of any size, and remember what came of it.

    `adapter`: by default the registered one, or the standard one.
    """
    model_type, decoder = types(config)
    if adapter is None:
        try:
            adapter = registry().adapter(config)
        except UnsupportedModelError:
            adapter = Standard()
    comparisons: Sequence[Comparison] = ()
    reason = None
    try:
        comparisons = check(config, adapter)
    except UnsupportedModelError as error:
        reason = str(error)
    found = Verdict(model_type, decoder, transformers.__version__, __version__, tuple(comparisons), reason)
    _remember(found)
    return found


def remembered(config: Any) -> Verdict | None:
    """What an earlier check of this type came to, with these versions."""
    found = outputs.read_json(_path(*types(config)))
    try:
        comparisons = tuple(Comparison(**one) for one in found.pop("comparisons"))
        return Verdict(**found, comparisons=comparisons)
    except (AttributeError, TypeError, KeyError):
        return None  # there is none, or nobody can read it: it is made anew


def adopt(config: Any, trust_family: bool = False) -> bool:
    """Let the registry have the standard adapter for a model, once it is checked; False for what is no such model.

    Raises:
        UnsupportedModelError: the check failed.
    """
    if without_columns(config) is not None:
        return False
    adopted = registry().adopted
    if trust_family:
        adopted[types(config)] = Standard()
        return True
    found = remembered(config)
    if found is None:
        log.warning("model type %s has no adapter of its own: checking pruning on a tiny one, once", types(config)[0])
        found = verify(config)
    if found.refusal is not None:
        raise UnsupportedModelError(
            f"pruning of model type {found.model_type!r} is not verified on transformers {found.transformers}: "
            f"{found.refusal}. `tokenprune verify {found.model_type}` shows all comparisons; docs/add-a-family.md says "
            "how to write an adapter; trust_family=True prunes it all the same"
        )
    adopted[types(config)] = Standard(reads_attention=found.attention is None)
    return True


def _remember(found: Verdict) -> None:
    try:
        outputs.write_json(_path(found.model_type, found.decoder), asdict(found))
    except TokenpruneError as error:
        log.warning("what was verified of %s is not remembered: %s", found.model_type, error)


def _path(model_type: str, decoder: str) -> Path:
    name = f"{model_type}-{decoder}-transformers-{transformers.__version__}-tokenprune-{__version__}.json"
    return outputs.cache_folder() / "families" / name.replace("/", "_")
