"""A published model, as numbers: what it costs can be told, and built with random weights, without a download.

Nothing here imports torch, so that help texts can name the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE = 32000
"""Token id of a picture's placeholder in models built with random weights; all text is below."""

VIDEO = 32001
"""That of a video's."""


@dataclass(frozen=True)
class BlockSize:
    """What one decoder block does with each of its tokens.

    Attributes:
        weights: multiply-adds that do not depend on the number of tokens: its projections and feed-forward, of experts
            those that one token goes through.
        attention: channels of its queries, all heads together; 0 where no token looks at another.
        kv: numbers that its cache keeps of a token; 0 where it keeps none that grows with the prompt.
        window: how many tokens each sees, itself among them; None is all. The cache keeps one fewer.
    """

    weights: int
    attention: int
    kv: int
    window: int | None = None

    def flops(self, n: int) -> int:
        """On n tokens: two for each multiply-add, and four for each pair of tokens and channel."""
        return 4 * n * min(n, self.window or n) * self.attention + 2 * n * self.weights

    def held(self, n: int) -> int:
        """Numbers in its cache after n tokens."""
        return self.kv * (n if self.window is None else min(n, self.window - 1))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder, and what its prompts and vision tower are counted in.

    Attributes:
        depth: blocks.
        width: hidden size d.
        ffn: intermediate size m of the gated feed-forward.
        heads: query heads H.
        kv_heads: key/value heads h.
        head_size: dh.
        family: model type, for messages.
        vision_depth: blocks of the vision tower that count, and its projector; 0 if they are not known.
        pictures: pictures, tiles or frames that make the visual tokens of a prompt.
        cls: visual tokens that each has besides its patches.
        blocks: what each block costs, where the sizes above do not say it of all of them; else empty.
    """

    depth: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    family: str = ""
    vision_depth: int = 0
    pictures: int = 1
    cls: int = 0
    blocks: tuple[BlockSize, ...] = ()


def _nothing(depth: int, width: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class Published:
    """A model of a family as it was published, and one picture or video for it.

    Attributes:
        name: in `--shape` and `--random-init`, such as llava-1.5-7b.
        sizes: of its decoder; `family` is one of its adapter's model types.
        config: what its config holds besides the tower's and the decoder's, `model_type` among it.
        vision: the config of its vision tower.
        text: what its decoder's config holds besides the sizes.
        pixels: shapes of the inputs that hold one picture or video, drawn at random.
        numbers: other inputs that come with it (its size, say), as lists.
        visual: visual tokens of a prompt in published tables, where they do not depend on the picture.
        placeholder: the token id that the picture or video replaces.
        marks: inputs that hold this number at visual columns, and 0 at all others.
        follows: from the blocks of its tower and the width of its decoder, what of the tower's config follows.
    """

    name: str
    sizes: Sizes
    config: Mapping[str, Any]
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    pixels: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, list[Any]] = field(default_factory=dict)
    visual: int | None = None
    placeholder: int = IMAGE
    marks: Mapping[str, int] = field(default_factory=dict)
    follows: Callable[[int, int], Mapping[str, Any]] = _nothing
