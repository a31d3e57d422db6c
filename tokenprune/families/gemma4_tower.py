"""Gemma 4's vision tower: pictures of any size, each padded to the same number of patches, pooled by their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..parts.vision import BlockRun, Call, VisionAdapter
from ..seen.vision import VisionBlock


@dataclass(frozen=True)
class Gemma4Tower(VisionAdapter):
    """Its states can be read; patches that pad a picture stand behind its own, and see nothing that is read."""

    def towers(self, base: Any) -> list[nn.Module]:
        return [base.vision_tower]

    def projector(self, base: Any) -> nn.Module:
        return base.embed_vision

    def added(self, base: nn.Module) -> None:
        return None

    def blocks(self, tower: Any) -> list[nn.Module]:
        return list(tower.encoder.layers)

    def features(self, config: Any, depth: int) -> int:
        return depth - 1

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        return {"queries": block.self_attn.q_norm, "keys": block.self_attn.k_norm}

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        queries, keys = (
            rearrange(run.projected[name], "b l heads dh -> heads (b l) dh") for name in ("queries", "keys")
        )
        tables = [
            rearrange(table, "b l (axes dh) -> axes 1 (b l) dh", axes=2) for table in run.call[1]["position_embeddings"]
        ]

        def rotate(states: Float[Tensor, "H r dh"]) -> Float[Tensor, "H r dh"]:
            turned = []
            for part, cos, sin in zip(states.chunk(2, dim=-1), *tables, strict=True):  # columns, then rows
                first, second = part.chunk(2, dim=-1)
                turned.append(part * cos + torch.cat((-second, first), dim=-1) * sin)
            return torch.cat(turned, dim=-1)

        real = (run.call[1]["position_ids"] >= 0).all(-1)
        lengths = [n for own in real.sum(1).tolist() for n in (own, real.shape[1] - own) if n]
        keys = keys.repeat_interleave(len(queries) // len(keys), 0)
        features, scaling = run.output.flatten(0, 1), block.self_attn.scaling
        return VisionBlock(queries, keys, features, tuple(lengths), scaling, cls=False, rotate=rotate)

    def sources(self, tower: Any, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        units, first = [], 0
        for own, cell, _ in _cells(tower, call):
            units.append(first + own[cell.argsort(stable=True)].reshape(-1, tower.config.pooling_kernel_size**2))
            first += rows // len(call[1]["pixel_position_ids"])
        return torch.cat(units)

    def places(self, tower: Any, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        found = []
        for picture, (_, cell, across) in enumerate(_cells(tower, call)):
            number = torch.unique(cell)
            found.append(torch.stack([torch.full_like(number, picture), number // across, number % across], 1))
        return torch.cat(found)

    def refuse(self, config: Any) -> str | None:
        return "it pads pictures to one number of patches, and different numbers would be left of each"


def _cells(tower: Any, call: Call) -> list[tuple[Int[Tensor, "r"], Int[Tensor, "r"], int]]:
    """Of each picture, the rows that are no padding, the token that each goes to, and how many tokens are in a row."""
    side, found = tower.config.pooling_kernel_size, []
    for places in call[1]["pixel_position_ids"].cpu():
        own = (places >= 0).all(-1).nonzero()[:, 0]
        column, row = (places[own] // side).unbind(1)
        across = (int(places[:, 0].max()) + 1) // side
        found.append((own, column + across * row, across))
    return found
