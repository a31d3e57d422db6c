"""Names to things."""

from __future__ import annotations

from .entries import DISTRIBUTION, GROUP, Broken, Entry, Registry
from .hookspecs import KINDS
from .plugins import registry, spell_part

__all__ = ["DISTRIBUTION", "GROUP", "KINDS", "Broken", "Entry", "Registry", "registry", "spell_part"]
