"""Whether pruning holds for a model type that nobody wrote a file for: tiny random models of any config."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedModelError
from ..parts.adapter import Adapter
from ..registry import registry


def adapter_for(config: Any, trust_family: bool = False) -> Adapter:
    """The adapter for a model: that of its family, or the standard one, which is checked once for each model type.

    Args:
        config: of the model.
        trust_family: take the standard one unchecked where nobody wrote one.

    Raises:
        UnsupportedModelError: nobody wrote one, and the check failed, or pictures are not columns of its decoder.
        RegistryError: several plugins have one.
    """
    try:
        found = registry().adapter(config)
    except UnsupportedModelError:
        if not _adopt(config, trust_family):
            raise
    else:
        if trust_family or getattr(found, "checked", True):
            return found
        _adopt(config)  # who trusted this type spoke for a call of their own
    return registry().adapter(config)


def _adopt(config: Any, trust_family: bool = False) -> bool:
    from .trust import adopt  # families with a file need nothing of it

    return adopt(config, trust_family)
