"""Errors that pass through."""

from __future__ import annotations

from tokenprune.errors import TokenpruneError


def passed_as_it_is(error: TokenpruneError, who: str) -> bool:
    """Not as the part's own failure; who it was stands in a note, where Python has notes."""
    notes = getattr(error, "__notes__", [f"raised inside {who}"])
    return notes == [f"raised inside {who}"] and error.__cause__ is None and "failed with" not in str(error)
