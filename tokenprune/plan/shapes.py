"""Shapes: the sizes of published models, by name. What a model costs can be told without its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import TokenpruneError, UnknownNameError
from ..families.forms import PUBLISHED as FORMS
from ..parts.published import Published, Sizes
from ..shipped import configs
from .cost import DecoderSize

PUBLISHED = {name: DecoderSize(**vars(form.sizes)) for name, form in FORMS.items()}
"""The 7B models of the families that are built in. Plugins bring more, and so do the shipped ones: see `shapes`."""

LISTED = "`tokenprune ls shapes` lists them"

VISUAL = 576
"""Visual tokens of a prompt where they depend on the picture."""


@dataclass(frozen=True)
class Shape:
    """A published model as its sizes.

    Attributes:
        name: in `--shape`.
        size: of its decoder.
        visual: tokens of a prompt in published tables, where they do not depend on the picture.
        source: where the numbers stand; empty if a model with random weights can be built, which holds them.
    """

    name: str
    size: DecoderSize
    visual: int | None
    source: str = ""

    @property
    def described(self) -> dict[str, Any]:
        """As numbers and words, for JSON."""
        size, blocks = self.size, self.size.kv_blocks
        numbers = ("family", "depth", "width", "ffn", "heads", "kv_heads", "head_size")
        known = {key: getattr(size, key) for key in numbers}
        told = {"kv_blocks": blocks and asdict(blocks), "visual": self.visual, "source": self.source}
        return {"name": self.name, **known, **told}


def published() -> dict[str, Published]:
    """Every published model of a registered family that can be built, by name; of several the built-in or first one."""
    from ..registry import registry  # which imports torch: help texts that name shapes need none

    found = dict(FORMS)
    for entry in registry().entries["adapter"].values():
        for form in vars(entry.part).get("published", ()):  # its own, not those of an adapter that it builds on
            found.setdefault(form.name, form)
    return found


def shapes() -> dict[str, Shape]:
    """All of them, by name: those that can be built, then those of which the sizes alone are shipped."""
    built = {name: Shape(name, DecoderSize(**vars(form.sizes)), form.visual) for name, form in published().items()}
    return {**built, **{name: shape for name, shape in _shipped().items() if name not in built}}


@cache
def _shipped() -> dict[str, Shape]:
    """Those of `configs/shapes.yaml`."""
    import yaml

    content = yaml.safe_load((configs() / "shapes.yaml").read_text())
    del content["decoders"]  # what its entries refer to
    return {shape.name: shape for family, entries in content.items() for shape in _read(family, entries)}


def _read(family: str, entries: dict[str, dict[str, Any]]) -> Iterator[Shape]:
    prompt = {field.name for field in fields(Sizes)}
    for name, entry in entries.items():
        given = {key: entry.pop(key) for key in tuple(entry) if key in prompt}
        visual, source = entry.pop("visual", None), entry.pop("source")
        yield Shape(name, DecoderSize.of_text(SimpleNamespace(**entry), family, **given), visual, source)


def visual_tokens(shape: str) -> int:
    """Visual tokens of a prompt in published tables; 576 where it depends on the picture."""
    known = FORMS.get(shape) or shapes().get(shape)
    return (known and known.visual) or VISUAL


def geometry(name: str) -> DecoderSize:
    """A named shape, or the sizes in a local `config.json` (or the folder that holds one).

    Raises:
        UnknownNameError: neither a shape nor an existing file.
        TokenpruneError: the file is no config of a model that transformers knows.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if shape := shapes().get(name):
        return shape.size
    path = Path(name)
    try:
        known = path.exists()
    except OSError:  # no path at all: too long, say
        known = False
    if not known:
        listed = f"known: {', '.join(PUBLISHED)} and more ({LISTED}), or path/to/config.json"
        raise UnknownNameError("shape", name, shapes(), listed)
    from transformers import AutoConfig

    try:
        content = json.loads((path / "config.json" if path.is_dir() else path).read_text())
        return DecoderSize.of(AutoConfig.for_model(**content))
    except Exception as error:  # whatever a config class can raise
        raise TokenpruneError(f"{path} is not the config.json of a model that transformers knows: {error}") from error
