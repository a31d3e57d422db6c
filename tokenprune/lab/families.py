"""Every image-text model type of transformers: who knows it, and what checks of it came to here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

from ..families.every import image_text_types
from ..families.standard import Standard
from ..registry import registry
from ..verify.verdict import Verdict, all_remembered, path_of

UNCHECKED = "not checked here yet"


@dataclass(frozen=True)
class Known:
    """A model type.

    Attributes:
        model_type: its name.
        adapter: the registered one that answers for it; None: the standard one, once it is verified.
        verdicts: of checks with that adapter, one for each decoder that the type was checked with.
    """

    model_type: str
    adapter: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def told(self) -> str:
        """In words: verified here or not, and why."""
        several = len(self.verdicts) > 1
        found = [f"with {one.decoder}: {outcome(one)}" if several else outcome(one) for one in self.verdicts]
        return "; ".join(dict.fromkeys(found)) or ("a file of its own" if self.adapter else UNCHECKED)

    @property
    def described(self) -> dict[str, Any]:
        """All of it, for JSON."""
        verdicts = [described(one) for one in self.verdicts]
        return {"model_type": self.model_type, "adapter": self.adapter, "told": self.told, "verdicts": verdicts}


def described(verdict: Verdict) -> dict[str, Any]:
    """A verdict with what follows from it, for JSON."""
    follows = {"verified": verdict.refusal is None, "refusal": verdict.refusal, "attention": verdict.attention}
    return {**asdict(verdict), **follows, "conclusion": conclusion(verdict)}


def outcome(verdict: Verdict) -> str:
    """In few words."""
    if verdict.refusal is not None:
        return f"not verified: {shorten(why(verdict), 110, placeholder=' ...')}"
    return "verified here" + (", for scorers that read no attention" if verdict.attention is not None else "")


def why(verdict: Verdict) -> str:
    """Why it is refused: what follows the words that any such refusal begins with."""
    return re.sub(rf"^.*?\b{re.escape(verdict.model_type)}\b[^:]*: ", "", verdict.refusal or "")


def conclusion(verdict: Verdict) -> str:
    """What follows for who prunes such a model."""
    own = None if verdict.adapter == path_of(Standard) else owner(verdict.model_type)
    if verdict.refusal is not None:
        prunes = f"pruned by its own adapter, {own}, which fails this check" if own else "not pruned"
        return f"{verdict.model_type} is {prunes}: {verdict.refusal}"
    adapter = f"its own adapter, {own}" if own else "the standard adapter"
    if verdict.attention is None:
        return f"{verdict.model_type} is pruned by {adapter}"
    return f"{verdict.model_type} is pruned by {adapter} and scorers that read no attention: {verdict.attention}"


def owner(model_type: str) -> str | None:
    """The name of the registered adapter of a model type; of several the built-in or first one."""
    return next((entry.name for entry in registry().adapters(model_type)), None)


def model_types() -> list[str]:
    """Those of transformers, and those that adapters of plugins name."""
    adapters = [entry.part for entry in registry().entries["adapter"].values()]
    return sorted({*image_text_types(), *(name for adapter in adapters for name in adapter.model_types)})


def families() -> list[Known]:
    """What is known of every model type. No model is built: checks that were made are remembered."""
    remembered, found = all_remembered(), []
    for name in model_types():
        adapter = owner(name)
        with_it = path_of(Standard if adapter is None else registry().get("adapter", adapter))
        verdicts = tuple(one for one in remembered.get(name, ()) if one.adapter == with_it)
        found.append(Known(name, adapter, verdicts))
    return found


def unchecked() -> list[str]:
    """Model types that were not checked here."""
    return [known.model_type for known in families() if not known.verdicts]
