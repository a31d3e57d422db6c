"""Vision towers that take pictures of any size: the patches of all of them in one row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..parts.vision import BlockRun, Call, TokenRows, VisionAdapter
from ..seen.vision import VisionBlock


@dataclass(frozen=True)
class PackedTower(VisionAdapter):
    """Patches of all pictures in one row, those of a token next to each other. No CLS row.

    Attributes:
        deepstack: attribute of the tower with mergers of earlier blocks, if it has some.
    """

    deepstack: str | None = None

    def towers(self, base: Any) -> list[nn.Module]:
        return [base.visual]

    def projector(self, base: Any) -> nn.Module:
        return base.visual.merger

    def sides(self, base: Any) -> list[nn.Module]:
        return [] if self.deepstack is None else list(getattr(base.visual, self.deepstack))

    def added(self, base: nn.Module) -> None:
        return None

    def blocks(self, tower: Any) -> list[nn.Module]:
        return list(tower.blocks)

    def features(self, config: Any, depth: int) -> int:
        return depth - 1

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        return {"all": block.attn.qkv}

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        queries, keys, _ = rearrange(
            run.projected["all"], "r (three heads dh) -> three heads r dh", three=3, heads=block.attn.num_heads
        )
        lengths = tuple(run.call[1]["cu_seqlens"].diff().tolist())
        return VisionBlock(queries, keys, run.output, lengths, block.attn.scaling, cls=False, rotate=rotation(run.call))

    def sources(self, tower: nn.Module, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        return torch.arange(rows).reshape(math.prod(projected), -1)

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        return raster([(h // side, w // side) for h, w, side in self.frames(tower, call)])

    def token_rows(self, config: Any, tower: Any, call: Call, hidden: Float[Tensor, "r d"]) -> TokenRows:
        frames = self.frames(tower, call)
        return TokenRows(tuple(h * w // side**2 for h, w, side in frames), frames[0][2] ** 2 if frames else 1)

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        args, named = call
        cos, sin = named["position_embeddings"]
        narrowed = {
            "position_embeddings": (cos[rows], sin[rows]),
            "cu_seqlens": narrowed_ends(named["cu_seqlens"], len(cos), rows),
        }
        return args, {**named, **narrowed}

    def frames(self, tower: Any, call: Call) -> list[tuple[int, int, int]]:
        """Height and width in patches of each picture or frame, and how many patches of a side become one token."""
        side = tower.spatial_merge_size
        return [(h, w, side) for t, h, w in grids(call).tolist() for _ in range(t)]


def grids(call: Call) -> Int[Tensor, "m 3"]:
    """What the tower was told of its pictures and videos: frames, height and width in patches."""
    args, named = call
    told: Tensor = named["grid_thw"] if "grid_thw" in named else args[1]
    return told


def raster(frames: list[tuple[int, int]]) -> Int[Tensor, "m 3"]:
    """Picture, row and column of the tokens of such pictures or frames."""
    cells = [torch.cartesian_prod(torch.arange(h), torch.arange(w)).reshape(-1, 2) for h, w in frames]
    return torch.cat([torch.cat([torch.full((len(own), 1), i), own], 1) for i, own in enumerate(cells)])


def rotation(call: Call) -> Callable[[Float[Tensor, "H r dh"]], Float[Tensor, "H r dh"]]:
    """RoPE as the block that was called so has it: halves rotated, by tables of all its rows."""
    cos, sin = call[1]["position_embeddings"]

    def rotate(states: Float[Tensor, "H r dh"]) -> Float[Tensor, "H r dh"]:
        precise = states.to(torch.promote_types(states.dtype, torch.float32))
        first, second = precise.chunk(2, dim=-1)
        return (precise * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)

    return rotate


def narrowed_ends(ends: Int[Tensor, "c"], count: int, rows: Int[Tensor, "r"]) -> Int[Tensor, "c"]:
    """Where stretches begin and end, of which these rows of `count` are left. Some may have become empty.

    Their number is a sync, as sdpa's own lengths are.
    """
    earlier = torch.zeros(count + 1, dtype=ends.dtype, device=ends.device).index_fill(0, rows + 1, 1).cumsum(0)
    return torch.unique_consecutive(earlier.to(ends.dtype)[ends.long()])
