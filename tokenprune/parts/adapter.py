"""What knows a model family. Most answers are the model's own; a family says what is special about it."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention import Attention, RotaryTables
from .published import Published
from .tiny import Tiny
from .vision import VisionAdapter

Box = tuple[float, float, float, float]
"""left, top, right, bottom; 0 to 1 is the whole picture."""


@dataclass(frozen=True)
class Given:
    """What says where visual tokens lie.

    Attributes:
        config: of the model.
        inputs: what the processor returned; may be empty.
        processor: that made them, if there is one.
        sizes: height and width of the first pictures of the batch, or None where they are not known; of as many as
            matter, each in the order of those that have its placeholder.
    """

    config: Any
    inputs: Mapping[str, Any]
    processor: Any = None
    sizes: tuple[tuple[int, int] | None, ...] = ()


class Adapter(ABC):
    """Knows one model family: answers questions about modules and token ids, decides nothing.

    The defaults ask the model, and hold for decoders laid out as Llama's are.
    """

    model_types: ClassVar[tuple[str, ...]]
    """Values of `config.model_type` this adapter answers for."""

    placeholders: ClassVar[tuple[str, ...]] = (
        "image_token_id",
        "image_token_index",
        "image_patch_id",
        "media_placeholder_token_id",
        "video_token_id",
        "video_token_index",
    )
    """Config attributes that hold the token ids of visual placeholders; those that a config lacks do not count."""

    published: ClassVar[tuple[Published, ...]] = ()
    """Models of this family by their sizes, for `--shape` and `--random-init`."""

    tiny: ClassVar[tuple[Tiny, ...]] = ()
    """Tiny models of this family, for the contract."""

    def base(self, model: nn.Module) -> nn.Module:
        """The innermost module around the decoder whose forward takes pictures. The model may be wrapped."""
        owner = next((part for part in model.modules() if hasattr(part, "get_decoder")), model)  # wrappers may not
        decoder = self.decoder(owner)
        path = next((name for name, module in model.named_modules() if module is decoder), "")
        around = [model, *(model.get_submodule(path[:i]) for i, letter in enumerate(path) if letter == ".")]
        return next((module for module in reversed(around) if _takes_pictures(module)), model)

    def decoder(self, base: nn.Module) -> nn.Module:
        """The text decoder; it has `.config`."""
        found: Any = base.get_decoder()  # type: ignore[operator]
        while not hasattr(found, "layers") and hasattr(found, "model"):
            found = found.model  # a decoder with a head of its own
        return found

    def blocks(self, decoder: nn.Module) -> list[nn.Module]:
        """Decoder blocks, first to last."""
        return list(decoder.layers)  # type: ignore[arg-type]

    def attention(self, block: nn.Module) -> Attention | None:
        """A block's attention; None where its queries and keys cannot be read (linear attention, a convolution)."""
        return Attention.of(block)

    def kinds(self, decoder: nn.Module) -> tuple[str, ...]:
        """The layer type of each block, in transformers' words: those of one type get the same mask and tables."""
        config, blocks = decoder.config, self.blocks(decoder)
        if found := getattr(config, "layer_types", None):
            return tuple(found[: len(blocks)])
        kind = "sliding" if getattr(config, "sliding_window", None) else "full"
        return (f"{kind}_attention",) * len(blocks)

    def holders(self, decoder: nn.Module) -> tuple[int, ...]:
        """For each block, the number of the block whose keys and values it reads: its own, unless they are shared."""
        latest: dict[str, int] = {}
        found = []
        for number, (block, kind) in enumerate(zip(self.blocks(decoder), self.kinds(decoder), strict=True)):
            if not getattr(getattr(block, "self_attn", None), "is_kv_shared_layer", False):
                latest[kind] = number
            found.append(latest[kind])
        return tuple(found)

    def norm(self, decoder: nn.Module, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        """The decoder's final norm."""
        return decoder.norm(hidden)  # type: ignore[operator]

    def rotary(
        self, decoder: nn.Module, hidden: Tensor, positions: Int[Tensor, "b s"], kind: str = "full_attention"
    ) -> RotaryTables | None:
        """Rotary tables for new positions, for blocks of a layer type, or None if the family's positions cannot be
        renumbered (M-RoPE, or learned ones).
        """
        own: Any = getattr(decoder, "rotary_emb", None)
        if own is None or "mrope_section" in (getattr(decoder.config, "rope_parameters", None) or {}):
            return None  # positions are places in a picture
        more = {"layer_type": kind} if "layer_type" in inspect.signature(own.forward).parameters else {}
        return own(hidden, position_ids=positions, **more)

    def additions(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Float[Tensor, "b s d"]]]:
        """What the decoder itself adds to hidden states between its blocks (deepstack features, say).

        Gets the arguments of the decoder's forward, by name. Gives those arguments without the additions, and the
        additions by the number of the block whose output they are added to: a row for each column of the prompt, zeros
        where nothing is added. Columns are dropped and the rest must get its own rows, so the engine adds them. By
        default those that transformers calls `deepstack_visual_embeds`, one for each of the first blocks.
        """
        stacked = kwargs.get("deepstack_visual_embeds")
        if stacked is None:
            return kwargs, {}
        columns, rows = kwargs["visual_pos_masks"], {}
        for block, features in enumerate(stacked):
            empty = features.new_zeros(*columns.shape, features.shape[-1])
            rows[block] = empty.masked_scatter(columns[..., None].to(features.device), features)
        return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}, rows

    def visual(self, config: Any, input_ids: Int[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
        """Which columns are placeholders of picture or video tokens."""
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for name in self.placeholders:
            if (token := getattr(config, name, None)) is not None:
                mask |= input_ids == token
        return mask

    def refuse(self, config: Any) -> str | None:
        """Why this decoder cannot be pruned, or None."""
        return None

    def longest(self, config: Any) -> int | None:
        """The columns of the longest conversation that can be pruned, where blocks count positions by themselves."""
        return None

    def boxes(self, given: Given) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        """Where visual tokens lie: by placeholder id, one tensor per picture or video, in the order of the batch.

        Per token: panel (a video's frame, or one of several grids over the same picture), then its box in the `window`;
        NaN for a token without a place, such as a newline. Endless where all pictures are alike, empty where `given`
        does not tell. None: not known for this family.
        """
        return None

    def window(self, processor: Any, width: int, height: int) -> Box:
        """What the model sees of a picture of this size, in the picture's coordinates; padding lies beyond 0 and 1.

        `processor` is the image or video processor; raises TokenpruneError where it is needed and None.
        """
        return 0.0, 0.0, 1.0, 1.0

    def vision_adapter(self) -> VisionAdapter | None:
        """Who knows this family's vision tower; None if its states cannot be read."""
        return None


def _takes_pictures(module: nn.Module) -> bool:
    return any(name.startswith("pixel_values") for name in inspect.signature(module.forward).parameters)
