"""Vision towers laid out like CLIP's: pictures of one size side by side."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..parts.vision import BlockRun, Call, TokenRows, VisionAdapter
from ..seen.vision import VisionBlock


@dataclass(frozen=True)
class ClipTower(VisionAdapter):
    """Pictures of equal size, one row per patch, a CLS row in front (none in SigLIP's).

    Tiles and frames are pictures too: how the model packs and crops their rows later is not asked here.

    Attributes:
        names: attributes of the base model that hold towers.
        connector: attribute of the base model that holds the projector.
        newline: attribute of the base model with a row that it puts between the pictures' rows.
        attention: attribute of a block that holds its attention.
        whole: rows are put back before the projector.
        caveat: which visual tokens are no rows of the projector.
    """

    names: tuple[str, ...] = ("vision_tower",)
    connector: str = "multi_modal_projector"
    newline: str | None = None
    attention: str = "self_attn"
    whole: bool = False
    caveat: str = ""

    def towers(self, base: nn.Module) -> list[nn.Module]:
        return [getattr(base, name) for name in self.names]

    def projector(self, base: nn.Module) -> nn.Module:
        return getattr(base, self.connector)

    def added(self, base: nn.Module) -> Float[Tensor, "m d"] | None:
        return None if self.newline is None else getattr(base, self.newline).detach()[None]

    def blocks(self, tower: nn.Module) -> list[nn.Module]:
        for part in tower.modules():
            if isinstance(part, nn.ModuleList) and hasattr(part[0], self.attention):
                return list(part)
        raise UnsupportedModelError(
            f"the states of a {type(tower).__name__} cannot be read: its blocks are not laid out like CLIP's"
        )

    def features(self, config: Any, depth: int) -> int:
        layer = _feature_layer(config)  # of hidden_states: before block 0, after block 0, ...
        layer = layer if isinstance(layer, int) else layer[-1]
        return max(0, layer % (depth + 1) - 1)

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        own = getattr(block, self.attention)
        return {
            "queries": own.q_norm if hasattr(own, "q_norm") else own.q_proj,
            "keys": own.k_norm if hasattr(own, "k_norm") else own.k_proj,
        }

    def read(self, tower: nn.Module, block: Any, run: BlockRun) -> VisionBlock:
        own = getattr(block, self.attention)

        def heads(flat: Float[Tensor, "b l w"]) -> Float[Tensor, "H r dh"]:
            return rearrange(flat, "b l (heads dh) -> heads (b l) dh", dh=own.head_dim)

        pictures, length = run.output.shape[:2]
        return VisionBlock(
            queries=heads(run.projected["queries"]),
            keys=heads(run.projected["keys"]),
            features=run.output.flatten(0, 1),
            lengths=(length,) * pictures,
            scaling=own.scale,
            cls=begins_with_cls(tower),
        )

    def sources(self, tower: nn.Module, call: Call, projected: tuple[int, ...], rows: int) -> Int[Tensor, "m u"]:
        return grid_units(projected[0], rows // projected[0], math.prod(projected[1:]))

    def places(self, tower: nn.Module, call: Call, projected: tuple[int, ...]) -> Int[Tensor, "m 3"]:
        pictures, tokens = projected[0], math.prod(projected[1:])
        side = math.isqrt(tokens)
        cell = torch.arange(tokens) - (tokens - side * side)
        row = torch.where(cell < 0, -1, cell // side)
        column = torch.where(cell < 0, -1, cell % side)
        grid = torch.stack([torch.zeros_like(cell), row, column], -1).repeat(pictures, 1, 1)
        grid[..., 0] = torch.arange(pictures)[:, None]
        return grid.flatten(0, 1)

    def token_rows(self, config: Any, tower: nn.Module, call: Call, hidden: Float[Tensor, "b l d"]) -> TokenRows:
        return TokenRows((hidden.shape[1] - begins_with_cls(tower),) * len(hidden))

    def narrow(self, call: Call, rows: Int[Tensor, "r"]) -> Call:
        return call  # nothing in it is of rows

    def weigh(self, block: Any, call: Call, sizes: Float[Tensor, "b l"]) -> Call:
        used = getattr(block, self.attention).config._attn_implementation
        if used not in ("sdpa", "eager"):
            raise UnsupportedModelError(
                f"proportional attention needs a mask that is added to the logits, which {used} does not take: set "
                "proportional=false, or load the vision tower with sdpa"
            )
        if "attention_mask" not in inspect.signature(block.forward).parameters:
            return super().weigh(block, call, sizes)
        mask, hidden = sizes.log()[:, None, None], attention_mask(call)  # b 1 1 l
        if hidden is not None:
            mask = torch.where(hidden, mask, -torch.inf) if hidden.dtype is torch.bool else hidden + mask
        return with_mask(call, mask)

    def refuse(self, config: Any) -> str | None:
        if not isinstance(_feature_layer(config), int):
            return f"the projector gets the rows of several blocks, vision_feature_layer {config.vision_feature_layer}"
        return None


def grid_units(pictures: int, length: int, tokens: int) -> Int[Tensor, "m u"]:
    """The rows of each token of pictures that are `length` rows long and become `tokens` tokens.

    Squares of the grid of patches become one token each. A row that is over is a CLS row, in front.
    """
    side = math.isqrt(length // tokens)
    first = length - tokens * side**2
    if first not in (0, 1):
        raise UnsupportedModelError(f"{length} rows of a picture are no squares of a grid for {tokens} tokens")
    patches = torch.arange(first, length)
    if side > 1:
        across = math.isqrt(tokens)
        units = rearrange(patches, "(h a w b) -> (h w) (a b)", a=side, w=across, b=side)
    else:
        units = patches[:, None]
    return (torch.arange(pictures)[:, None, None] * length + units).flatten(0, 1)


def attention_mask(call: Call) -> Tensor | None:
    """The mask that a block is called with, by position or by name, if it is."""
    args, named = call
    found = named.get("attention_mask", args[1] if len(args) > 1 else None)
    return found if isinstance(found, Tensor) else None


def with_mask(call: Call, mask: Tensor) -> Call:
    """The call with another mask."""
    args, named = call
    if "attention_mask" in named:
        return args, {**named, "attention_mask": mask}
    return (args[0], mask, *args[2:]), named


def begins_with_cls(tower: nn.Module) -> bool:
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())


def _feature_layer(config: Any) -> Any:
    """Which of the tower's hidden states the projector gets; the last where the config does not say."""
    layer = getattr(config, "vision_feature_layer", None)
    return -1 if layer is None else layer
