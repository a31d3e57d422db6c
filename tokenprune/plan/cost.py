"""Formulas: floating-point operations and KV cache of a decoder with and without pruning (arXiv 2602.17196, Eq. 15-16).

`n` and `text` are token counts; FLOPs are those of the decoder's prefill (no tower, no head); KV is of visual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TokenpruneError, UnknownNameError, UnsupportedModelError
from ..families.forms import PUBLISHED as FORMS
from ..parts.published import Published, Sizes

MIB = 2**20


@dataclass(frozen=True)
class DecoderSize(Sizes):
    """What a decoder of these sizes costs."""

    @classmethod
    def of(cls, config: Any) -> DecoderSize:
        """From a transformers config."""
        from ..registry import registry  # which imports torch: formulas, and help texts that name shapes, need none

        text = config.get_text_config()
        vision, tower = getattr(config, "vision_config", None), None
        with suppress(UnsupportedModelError):
            tower = registry().adapter(config).vision_adapter()
        blocks: int = getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", None) or 0
        heads = text.num_attention_heads
        return cls(
            depth=text.num_hidden_layers,
            width=text.hidden_size,
            ffn=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
            family=config.model_type,
            vision_depth=tower.features(config, blocks) + 2 if tower and blocks else 0,
        )

    def block_flops(self, n: int) -> int:
        """One block on n tokens: `4 n^2 d + 8 n d^2 + 6 n m d` (Eq. 15), with smaller k/v projections under GQA."""
        inner, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        projections = 2 * n * self.width * (2 * inner + 2 * kv)
        return 4 * n * n * inner + projections + 6 * n * self.ffn * self.width

    def tokens(self, plan: Mapping[int, int], visual: int) -> list[int]:
        """Visual tokens that each block sees under a plan `{layer: kept}`; layers below 0 are of the vision tower."""
        counts, left = [], plan.get(max((layer for layer in plan if layer < 0), default=0), visual)
        for block in range(self.depth):
            left = plan.get(block, left)
            counts.append(left)
        return counts

    def prefill_flops(self, plan: Mapping[int, int], visual: int, text: int) -> int:
        """All blocks of one prompt."""
        return sum(self.block_flops(n + text) for n in self.tokens(plan, visual))

    def flops_share(self, plan: Mapping[int, int], visual: int, text: int) -> float:
        """FLOPs left, as a share of the unpruned prefill: 1 - R of Eq. 16."""
        return self.prefill_flops(plan, visual, text) / self.prefill_flops({}, visual, text)

    def kv_mib(self, plan: Mapping[int, int], visual: int, element_bytes: int = 2) -> float:
        """KV cache of the visual tokens of one prompt, in MiB (2^20 bytes); fp16 unless told otherwise."""
        per_token = 2 * self.kv_heads * self.head_size * element_bytes
        return sum(self.tokens(plan, visual)) * per_token / MIB


PUBLISHED = {name: DecoderSize(**vars(form.sizes)) for name, form in FORMS.items()}
"""The 7B models of the families that are built in. Plugins bring more: see `published`."""


def published() -> dict[str, Published]:
    """Every published model of a registered family, by name; of several with one name, the built-in or first one."""
    from ..registry import registry

    found = dict(FORMS)
    for entry in registry().entries["adapter"].values():
        for form in vars(entry.part).get("published", ()):  # its own, not those of an adapter that it builds on
            found.setdefault(form.name, form)
    return found


def visual_tokens(shape: str) -> int:
    """Visual tokens of a prompt in published tables; 576 where it depends on the picture."""
    form = FORMS.get(shape) or published().get(shape)
    return (form and form.visual) or 576


def geometry(name: str) -> DecoderSize:
    """A named shape, or the sizes in a local `config.json` (or the folder that holds one).

    Raises:
        UnknownNameError: neither a shape nor an existing file.
        TokenpruneError: the file is no config of a model that transformers knows.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if form := published().get(name):
        return DecoderSize(**vars(form.sizes))
    path = Path(name)
    try:
        known = path.exists()
    except OSError:  # no path at all: too long, say
        known = False
    if not known:
        raise UnknownNameError("shape", name, [*published(), "path/to/config.json"])
    from transformers import AutoConfig

    try:
        content = json.loads((path / "config.json" if path.is_dir() else path).read_text())
        return DecoderSize.of(AutoConfig.for_model(**content))
    except Exception as error:  # whatever a config class can raise
        raise TokenpruneError(f"{path} is not the config.json of a model that transformers knows: {error}") from error
