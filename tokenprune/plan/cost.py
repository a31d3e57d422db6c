"""Formulas: floating-point operations and KV cache of a decoder with and without pruning (arXiv 2602.17196, Eq. 15-16).

`n` and `text` are token counts; FLOPs are those of the decoder's prefill (no tower, no head); KV is of visual tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UnsupportedModelError
from ..parts.published import BlockSize, Sizes
from .blocks import blocks, heads, of_block
from .feed_forward import dense

MIB = 2**20


@dataclass(frozen=True)
class KvBlocks:
    """Which blocks keep keys and values that grow with the prompt, and which of a window or of none.

    Attributes:
        whole: blocks that keep all tokens: there pruning saves what it drops.
        window: blocks that keep the last ones, and save only where fewer are left.
        none: blocks that keep nothing that grows: linear attention, convolutions, keys and values of an earlier block.
        windows: how many tokens those of a window see.
    """

    whole: int
    window: int
    none: int
    windows: tuple[int, ...]

    def __str__(self) -> str:
        """Which they are, in words."""
        depth = self.whole + self.window + self.none
        if not self.window:
            return f"in {self.whole} of {depth} blocks"
        seen = " or ".join(map(str, self.windows))
        return f"all in {self.whole} of {depth} blocks, a window of {seen} in {self.window}"


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
        depth: int = getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", None) or 0
        return cls.of_text(text, config.model_type, tower.features(config, depth) + 2 if tower and depth else 0)

    @classmethod
    def of_text(cls, text: Any, family: str = "", vision_depth: int = 0, **more: Any) -> DecoderSize:
        """From a text config, or whatever has its fields; `more` are other fields of `Sizes`."""
        first, described = of_block(text, 0), blocks(text)
        sizes = (text.num_hidden_layers, text.hidden_size, dense(first), *heads(first))
        plain = cls(*sizes, family=family, vision_depth=vision_depth, **more)
        return plain if all(block == plain.plain for block in described) else replace(plain, blocks=described)

    @property
    def plain(self) -> BlockSize:
        """A block with attention to all tokens and one gated feed-forward (smaller k/v projections under GQA)."""
        inner, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        return BlockSize(self.width * (2 * inner + 2 * kv) + 3 * self.ffn * self.width, inner, 2 * kv)

    @property
    def each(self) -> tuple[BlockSize, ...]:
        """What every block costs."""
        return self.blocks or (self.plain,) * self.depth

    @property
    def kv_blocks(self) -> KvBlocks | None:
        """Which blocks keep keys and values of how many tokens; None where each keeps all."""
        keeping = [block.window for block in self.each if block.kv]
        whole = keeping.count(None)
        if whole == self.depth:
            return None
        windows = tuple(sorted({window for window in keeping if window is not None}))
        return KvBlocks(whole, len(keeping) - whole, self.depth - len(keeping), windows)

    def block_flops(self, n: int, block: int = 0) -> int:
        """One block on n tokens: `4 n^2 d + 8 n d^2 + 6 n m d` (Eq. 15) where it is plain and has no GQA."""
        return self.each[block].flops(n)

    def tokens(self, plan: Mapping[int, int], visual: int) -> list[int]:
        """Visual tokens that each block sees under a plan `{layer: kept}`; layers below 0 are of the vision tower."""
        counts, left = [], plan.get(max((layer for layer in plan if layer < 0), default=0), visual)
        for block in range(self.depth):
            left = plan.get(block, left)
            counts.append(left)
        return counts

    def prefill_flops(self, plan: Mapping[int, int], visual: int, text: int) -> int:
        """All blocks of one prompt."""
        counts = zip(self.each, self.tokens(plan, visual), strict=True)
        return sum(block.flops(n + text) for block, n in counts)

    def flops_share(self, plan: Mapping[int, int], visual: int, text: int) -> float:
        """FLOPs left, as a share of the unpruned prefill: 1 - R of Eq. 16."""
        return self.prefill_flops(plan, visual, text) / self.prefill_flops({}, visual, text)

    def kv_mib(self, plan: Mapping[int, int], visual: int, element_bytes: int = 2) -> float:
        """KV cache of the visual tokens of one prompt, in MiB (2^20 bytes); fp16 unless told otherwise.

        Where blocks see a window, these are at most the tokens that it keeps: text after the picture leaves fewer.
        """
        counts = zip(self.each, self.tokens(plan, visual), strict=True)
        return sum(block.held(n) for block, n in counts) * element_bytes / MIB
