"""Recipes fitted to a tiny model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from families import model

from tokenprune import Fact, Sample
from tokenprune.registry import registry


def fitted(fact: Fact, prompts: Iterable[dict[str, Any]], family: str = "llava") -> dict[str, Any] | None:
    """The recipe fitted with what is measured on these model inputs."""
    lm = model(family)
    adapter = registry().adapter(lm.config)
    return fact.recipe(fact.measure(lm, adapter, [Sample.of(lm, adapter, inputs) for inputs in prompts]))
