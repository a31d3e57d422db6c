"""What knows a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .vision import VisionAdapter

RotaryTables = tuple[Tensor, Tensor]
"""cos and sin, each `b s dh`."""

Box = tuple[float, float, float, float]
"""left, top, right, bottom; 0 to 1 is the whole picture."""


class Adapter(ABC):
    """Knows one model family: answers questions about modules and token ids, decides nothing."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `config.model_type` this adapter answers for."""

    @abstractmethod
    def base(self, model: nn.Module) -> nn.Module:
        """The module whose forward takes `input_ids` and picture features and calls the decoder."""

    @abstractmethod
    def decoder(self, base: nn.Module) -> nn.Module:
        """The text decoder; it has `.config`."""

    @abstractmethod
    def blocks(self, decoder: nn.Module) -> list[nn.Module]:
        """Decoder blocks, first to last."""

    @abstractmethod
    def projections(self, block: nn.Module) -> Mapping[str, nn.Module]:
        """`queries`, `keys`, `values` -> the linear layer whose output holds them, heads concatenated (tensor parallel:
        this rank's heads).
        """

    @abstractmethod
    def project(self, block: nn.Module, name: str, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r w"]:
        """What `projections(block)[name]` would give for these rows entering the block (its own norm included)."""

    @abstractmethod
    def head_size(self, block: nn.Module) -> int:
        """dh."""

    @abstractmethod
    def scaling(self, block: nn.Module) -> float:
        """Factor on the attention logits."""

    @abstractmethod
    def rotate(self, states: Float[Tensor, "h r dh"], cos: Tensor, sin: Tensor) -> Float[Tensor, "h r dh"]:
        """RoPE with the tables (`r dh`) of these rows."""

    @abstractmethod
    def norm(self, decoder: nn.Module, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        """The decoder's final norm."""

    @abstractmethod
    def rotary(self, decoder: nn.Module, hidden: Tensor, positions: Int[Tensor, "b s"]) -> RotaryTables | None:
        """Rotary tables for new positions, or None if the family's positions cannot be renumbered (M-RoPE)."""

    @abstractmethod
    def visual(self, config: Any, input_ids: Int[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
        """Which columns are placeholders of picture or video tokens."""

    @abstractmethod
    def refuse(self, config: Any) -> str | None:
        """Why this decoder cannot be pruned (a sliding window, say), or None."""

    @abstractmethod
    def boxes(self, config: Any, inputs: Mapping[str, Any]) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        """Where visual tokens lie: by placeholder id, one tensor per picture or video, in the order of the batch.

        Per token: panel (a video's frame, or one of several grids over the same picture), then its box in the `window`;
        NaN for a token without a place, such as a newline. Endless where all pictures are alike, empty where `inputs`,
        what the processor returned, do not tell. None: not known for this family.
        """

    @abstractmethod
    def window(self, processor: Any, width: int, height: int) -> Box:
        """What the model sees of a picture of this size, in the picture's coordinates; padding lies beyond 0 and 1.

        `processor` is the image or video processor; raises TokenpruneError where it is needed and None.
        """

    def vision_adapter(self) -> VisionAdapter | None:
        """Who knows this family's vision tower; None if its states cannot be read."""
        return None
