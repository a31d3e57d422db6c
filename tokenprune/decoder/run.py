"""What the phases of one forward pass hand to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..model.taps import Taps
from ..parts import guard
from ..parts.attention import RotaryTables
from ..state.prompt import Prompt, ViewLayers
from .inputs import PassInput
from .pipeline import Pipeline

Mask = Tensor | BlockMask | None
"""A causal mask in the form that the attention backend wants."""


class Held(NamedTuple):
    """What a block holds of the conversation. A tuple: torch.compile traces how one is made.

    Attributes:
        mask: over these columns; None hides nothing.
        freed: how many positions lie behind where they were numbered anew; None where they were not.
    """

    mask: Bool[Tensor, "b held"] | None
    freed: Int[Tensor, "b 1"] | None


@dataclass(eq=False)
class ForwardPass:
    """One forward pass: what its phases hand to each other. `Prompt` is a value; a stage puts a new one here.

    Attributes:
        pipeline: that it goes through.
        given: what it was given; None where torch.compile traces it, which has its masks from the cache.
        prompt: that is pruned here, or was in an earlier pass of the conversation.
        prefill: whether this pass prunes.
        cache: as the blocks get it: the model may make it between its base and its decoder.
        taps: hooks for the length of this pass.
        captured: by layer, projections of the block before the stage there.
        entering: by layer, the arguments that the model gave the block before the stage there.
        embedded: what entered block 0, until the last stage is over.
        held: by what blocks see of the conversation (`view_layers`).
        rotary: new positions, if any, and tables, by that and the block's layer type.
        until: the next stage of the conversation: blocks of one layer type before it see alike.
        changed: arguments that pruning makes for these blocks, by layer type; None leaves them.
        flags: whether parts kept their word, asked at the end with one sync.
        answering: of prompts that end with their picture, the layer where the last token was dropped. The answer is
            read from it: it goes on to the end of this pass, as the columns of text do, and only then out of sight.
        as_unpruned: whether blocks need nothing that the model does not make by itself, unless it finds a mask to make.
    """

    pipeline: Pipeline
    given: PassInput | None
    prompt: Prompt
    prefill: bool = False
    cache: Any = None
    taps: Taps | None = None
    captured: dict[int, dict[str, Float[Tensor, "b k *w"]]] = field(default_factory=dict)
    entering: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    embedded: Float[Tensor, "b k d"] | None = None
    held: dict[ViewLayers, Held] = field(default_factory=dict)
    rotary: dict[tuple[ViewLayers, str], tuple[Int[Tensor, "b k"] | None, RotaryTables]] = field(default_factory=dict)
    until: int = 0
    changed: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    flags: list[guard.Flag] = field(default_factory=list)
    answering: Mapping[int, int] = field(default_factory=dict)
    as_unpruned: bool = False
