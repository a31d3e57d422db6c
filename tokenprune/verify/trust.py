"""Model types that nobody wrote an adapter for: checked once, remembered, and then pruned like any other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedModelError
from ..families.standard import Standard
from ..parts.adapter import Adapter
from ..registry import registry
from ..registry.entries import types
from .check import check
from .prompt import without_columns
from .typical import typical
from .verdict import Comparison, Verdict, remember, remembered

log = logging.getLogger("tokenprune")


def verify(config: Any, adapter: Adapter | None = None) -> Verdict:
    """Check a model type on a tiny random model of a config of any size, and remember what came of it.

    `adapter`: by default the registered one, or the standard one.
    """
    if adapter is None:
        try:
            adapter = registry().adapter(config)
        except UnsupportedModelError:
            adapter = Standard()
        if type(adapter) is Standard:  # one that was adopted may be told not to read attention
            adapter = Standard()
    comparisons: Sequence[Comparison] = ()
    reason = None
    try:
        comparisons = check(config, adapter)
    except UnsupportedModelError as error:
        reason = str(error)
    return remember(types(config), type(adapter), comparisons, reason)


def verify_type(model_type: str) -> Verdict:
    """The same for the default config of a model type; that it has none is remembered too."""
    try:
        config = typical(model_type)
    except UnsupportedModelError as error:
        return remember((model_type, "unknown", ""), Standard, (), str(error))
    return verify(config)


def adopt(config: Any, trust_family: bool = False) -> bool:
    """Let the registry have the standard adapter for a model, once it is checked; False for what is no such model.

    Raises:
        UnsupportedModelError: the check failed.
    """
    if without_columns(config) is not None:
        return False
    adopted = registry().adopted
    if trust_family:
        adopted[types(config)] = Standard(checked=False)
        return True
    found = remembered(config)
    if found is None or found.reason is not None:  # what could not be run may be by now: packages were missing, say
        log.warning("model type %s has no adapter of its own: checking pruning on a tiny one, once", types(config)[0])
        found = verify(config)
    if found.refusal is not None:
        raise UnsupportedModelError(
            f"pruning of model type {found.model_type!r} is not verified on transformers {found.transformers}: "
            f"{found.refusal}. `tokenprune verify {found.model_type}` shows all comparisons; docs/add-a-family.md says "
            "how to write an adapter; trust_family=True (--trust-family) prunes it all the same"
        )
    adopted[types(config)] = Standard(reads_attention=found.attention is None)
    return True
