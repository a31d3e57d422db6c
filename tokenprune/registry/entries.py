"""What is registered, by kind and name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import RegistryError, UnknownNameError, UnsupportedModelError

if TYPE_CHECKING:  # the command line's help names the kinds, without torch
    from ..parts.adapter import Adapter

DISTRIBUTION = "tokenprune-mllm"

GROUP = "tokenprune"


@dataclass(frozen=True)
class Entry:
    """One registered thing."""

    kind: str
    name: str
    part: Any
    distribution: str


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, or a name of it (`part`) that is left out, and why."""

    distribution: str
    reason: str
    part: str | None = None

    def __str__(self) -> str:
        what = f"the {self.part} of {self.distribution}" if self.part else f"the broken plugin {self.distribution}"
        return f"{what}: {self.reason}"


@dataclass(frozen=True)
class Registry:
    """Everything registered, by kind and name, and what of plugins is left out.

    A built-in thing keeps its name whatever plugins register. A name that several plugins want is `contested`: nobody
    has it, whatever the order of installation, so it is missing from `entries`, and asking for it is an error.
    """

    entries: dict[str, dict[str, Entry]]
    broken: tuple[Broken, ...]
    contested: dict[str, dict[str, tuple[Entry, ...]]]
    adopted: dict[tuple[str, str, str], Adapter] = field(default_factory=dict)
    """For models that nobody wrote an adapter for, by their `types`: see `verify`."""

    def get(self, kind: str, name: str) -> Any:
        """The registered thing. Raises UnknownNameError with the closest name, RegistryError if it is contested."""
        if name in self.contested[kind]:
            raise RegistryError(contest(f"{kind} name {name!r}", self.contested[kind][name]))
        known = self.entries[kind]
        if name not in known:
            raise UnknownNameError(kind, name, known)
        return known[name].part

    def origin(self, kind: str, part: Any) -> str:
        """A thing in words, for errors: its name and the distribution that brings it."""
        for entry in self.entries[kind].values():
            if entry.part is part:
                return f"{kind} {entry.name!r} of {entry.distribution}"
        return f"{kind} {part.__name__!r} of module {part.__module__}"

    def adapters(self, model_type: str) -> list[Entry]:
        """Those that answer for a model type; the built-in one alone where there is one."""
        found = [entry for entry in self.entries["adapter"].values() if model_type in entry.part.model_types]
        return [entry for entry in found if entry.distribution == DISTRIBUTION] or found

    def adapter(self, config: Any) -> Adapter:
        """The adapter for `config.model_type`. Raises UnsupportedModelError; RegistryError if plugins have several."""
        model_type = getattr(config, "model_type", None)
        found = self.adapters(str(model_type))
        if len(found) == 1:
            adapter: Adapter = found[0].part()
            return adapter
        if found:
            raise RegistryError(contest(f"model type {model_type!r}", found))
        for name, rivals in self.contested["adapter"].items():
            if any(model_type in entry.part.model_types for entry in rivals):
                self.get("adapter", name)
        if (adopted := self.adopted.get(types(config))) is not None:
            return adopted
        known = sorted({t for entry in self.entries["adapter"].values() for t in entry.part.model_types})
        raise UnsupportedModelError(
            f"no adapter for model type {model_type!r}: supported are {', '.join(known)}. "
            "docs/add-a-family.md shows how to add one."
        )


def types(config: Any) -> tuple[str, str, str]:
    """What tells models apart that are laid out differently: the type of the model and of its decoder (`lfm2 (conv,
    full_attention)`, where blocks are not all of full attention), and what is switched on in the decoder.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    window = "sliding" if getattr(text, "sliding_window", None) else "full"
    kinds = sorted(set(getattr(text, "layer_types", None) or (f"{window}_attention",)))
    decoder = str(getattr(text, "model_type", None))
    decoder = decoder if kinds == ["full_attention"] else f"{decoder} ({', '.join(kinds)})"
    return str(getattr(config, "model_type", None)), decoder, _switches(text)


def _switches(config: Any) -> str:
    """A digest of all in a config that is no size: whether and which, but not how many."""
    told = json.dumps(_told(config.to_dict() if hasattr(config, "to_dict") else {}), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _told(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _told(inner) for name, inner in value.items() if not _IRRELEVANT.search(str(name))}
    if isinstance(value, list | tuple):
        return sorted({json.dumps(_told(inner), sort_keys=True) for inner in value})
    return bool(value) if isinstance(value, int | float) else str(value)


_IRRELEVANT = re.compile("^_|token|label|version|architectures|dtype|name|output_|return_dict|use_cache|problem_type")
"""Fields that do not change what a decoder computes of its columns."""


def contest(what: str, rivals: Sequence[Entry]) -> str:
    """Why nobody has what several plugins want, and what to do."""
    who = sorted(entry.distribution for entry in rivals)
    many = "twice" if len(who) == 2 else f"{len(who)} times"
    return (
        f"the {what} is registered {many}, by {', '.join(who[:-1])} and {who[-1]}: uninstall all but one of them, or "
        "name the plugins to load in TOKENPRUNE_PLUGINS without the others"
    )
