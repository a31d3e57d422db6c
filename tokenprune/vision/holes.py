"""Holes: rows of NaN that stand where dropped tokens were, between the projector and the decoder's first block.

Models scatter the projector's rows to the placeholders of a prompt and count them; LLaVA-NeXT packs them first: it
puts tiles together to a picture, crops what was padding and adds newlines. All of that wants whole grids. So what left
the tower early gets a row again, and no packing is written a second time. It is NaN, so that a hole which somebody
reads after all spoils everything after it instead of passing for a token.

Between an encoding and its prompts lies code that nobody hooks, and any amount of time: `generate` encodes before the
prefill, callers encode ahead, join encodings and show a picture twice. Hence holes say themselves where their tokens
went; nothing has to be kept, freed or matched for them. Their channels:

    0        NaN
    1, 2     the hole code, as two digits to base 256: before which layer, by which pass, and what its scorer did wrong
    3 to 5   the mark: three random bytes of the pruning block, because another block's recipe may be another one
    the rest NaN

All numbers are whole and below 256, the range that bfloat16 holds exactly, so any cast on the way leaves them alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..errors import PromptError, ScorerError
from ..parts import guard
from ..recipe import VisionPass
from ..registry import spell_part
from .groups import Survivors
from .match import Encodings, Landed

FAULTS = (None, guard.NAN, guard.LOST)
"""What a hole may say of its picture's scorer: nothing, or what it did wrong."""

BASE = 256

Number = TypeVar("Number", int, Tensor)


@dataclass(frozen=True)
class HoleCode:
    """What holes of one pruning block say, and how.

    Attributes:
        passes: those inside the vision tower.
        depth: layers of the tower, the projector included.
        mark: bytes that tell this block's holes from others.
    """

    passes: tuple[VisionPass, ...]
    depth: int
    mark: bytes

    def number(self, layer: int, step: VisionPass, fault: str | None = None) -> int:
        """One number: before which layer a token went, by which pass, and what its scorer did wrong."""
        index = next(i for i, other in enumerate(self.passes) if other is step)
        return (layer * len(self.passes) + index) * len(FAULTS) + FAULTS.index(fault)

    def parts(self, number: Number) -> tuple[Number, Number, Number]:
        """Of such a number, the layer, the pass's index among the passes, and the fault's among `FAULTS`."""
        stage, fault = number // len(FAULTS), number % len(FAULTS)
        return stage // len(self.passes), stage % len(self.passes), fault


def spell_scorer(step: VisionPass, layer: int) -> str:
    """A pass's scorer at a layer of the tower, as errors name it."""
    return spell_part("scorer", type(step.scorer), f"inside the vision tower at layer {layer}")


def with_holes(code: HoleCode, survivors: Survivors, rows: Float[Tensor, "r d"]) -> Float[Tensor, "s d"]:
    """The projector's rows, one of each slot that is left, where their slots were, and holes between them.

    A picture whose scorer did something wrong is all holes. Only the device knows of it, and to ask would be a sync for
    each encoding; so, whatever the model crops, some hole of the picture reaches the prompt that shows it, and no other
    prompt, and is read there with the rest.
    """
    faults = survivors.faults
    holes = _write(code, torch.where(faults > 0, faults, survivors.codes), rows)
    whole = holes.index_copy(0, survivors.in_order(survivors.slots_as_they_came), rows)
    return torch.where((faults > 0)[:, None], holes, whole)


def _write(code: HoleCode, numbers: Int[Tensor, "s"], like: Tensor) -> Float[Tensor, "s d"]:
    """Holes that say these numbers, in the dtype and width of `like`."""
    holes = like.new_full((len(numbers), like.shape[-1]), torch.nan)
    holes[:, 1], holes[:, 2] = numbers // BASE, numbers % BASE
    for channel, byte in enumerate(code.mark, 3):
        holes[:, channel] = byte
    return holes


@dataclass(frozen=True, eq=False)
class _Found:
    """NaN among rows that enter the decoder.

    Attributes:
        own: holes of this pruning block.
        foreign: of another one.
        stray: rows with NaN that are no holes.
        layer: before which layer each token went; `depth` for those that are left.
        step: the index of the pass that dropped it, 0 for those that are left.
        blamed: the highest number among holes that tell of a fault, or 0.
    """

    own: Bool[Tensor, "b s"]
    foreign: Bool[Tensor, "b s"]
    stray: Bool[Tensor, "b s"]
    layer: Int[Tensor, "b s"]
    step: Int[Tensor, "b s"]
    blamed: Int[Tensor, ""]


def _find(code: HoleCode, hidden: Float[Tensor, "b s d"], visual: Bool[Tensor, "b s"]) -> _Found:
    holes = hidden[..., 0].isnan() & visual
    own = holes
    for channel, byte in enumerate(code.mark, 3):
        own = own & (hidden[..., channel] == byte)
    foreign = holes & ~own & ~hidden[..., 1].isnan()  # a number where NaN of any other origin has none
    stray = hidden.isnan().any(-1) & ~own & ~foreign
    digits = hidden[..., 1:3].masked_fill(~own[..., None], 0).long()
    numbers = digits[..., 0] * BASE + digits[..., 1]
    layer, step, fault = code.parts(numbers)
    return _Found(
        own,
        foreign,
        stray,
        layer=torch.where(own, layer, code.depth),
        step=torch.where(own, step, 0),
        blamed=torch.where(fault > 0, numbers, 0).max(),
    )


def read(
    code: HoleCode, encodings: Encodings[Landed], hidden: Float[Tensor, "b s d"], visual: Bool[Tensor, "b s"]
) -> tuple[Int[Tensor, "b s"], list[tuple[VisionPass, tuple[int, ...]]]]:
    """What the rows that enter the decoder say.

    One device sync; a second one only if some picture has no hole, to look where it comes from.

    Returns:
        before which layer of the tower each token went, `depth` for those that are left; and by layer, which pass
        dropped some there and how many visual tokens it left of each prompt.

    Raises:
        ScorerError: a scorer did something wrong to a picture shown here.
        PromptError: a picture was encoded outside of the pruning block, or NaN enters that is no hole.
    """
    hidden = hidden.detach()
    found = _find(code, hidden, visual)
    unholed = _without_holes(found.own, visual)
    layers = torch.arange(code.depth, device=hidden.device)[:, None, None]
    left = (visual & (found.layer > layers)).sum(2)
    dropped_by = torch.where(found.layer == layers, found.step, 0).amax((1, 2))
    flags = torch.stack([found.blamed, *(flag.any() for flag in (found.foreign, found.stray, unholed))])
    *numbers, blamed, foreign, stray, unsure = torch.cat([left.flatten(), dropped_by, flags]).tolist()  # the one sync
    if stray:
        raise _stray(code, encodings.adapter.caveat)
    if blamed and not foreign:  # what a model makes of several holes may tell anything
        raise _fault(code, blamed)
    if foreign or (unsure and _strangers(encodings, hidden, unholed)):
        raise PromptError(
            "the recipe has passes with tower: vision, and a prompt's pictures were encoded outside of the pruning "
            "block: encode them inside it, and hold on to what get_image_features returns until the prefill"
            + _but(encodings.adapter.caveat)
        )
    prompts = len(hidden)
    kept = [tuple(numbers[prompts * layer : prompts * (layer + 1)]) for layer in range(code.depth)]
    steps = [code.passes[index] for index in numbers[prompts * code.depth :]]
    return found.layer, list(zip(steps, kept, strict=True))


def _fault(code: HoleCode, number: int) -> ScorerError:
    layer, index, fault = code.parts(number)
    return guard.broken(spell_scorer(code.passes[index], layer), str(FAULTS[fault]))


def _stray(code: HoleCode, caveat: str) -> PromptError:
    passes = ", ".join(f"prune.{index}" for index in range(len(code.passes)))
    return PromptError(
        f"rows of NaN enter the decoder that are no holes of {passes} (tower: vision): a picture holds NaN, or "
        f"the adapter does not name all columns of visual tokens{_but(caveat)}"
    )


def _but(caveat: str) -> str:
    return caveat and f"; {caveat}"


def _without_holes(holes: Bool[Tensor, "b s"], visual: Bool[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
    """Visual columns in stretches without a hole: of pictures that lost nothing, or that nobody pruned."""
    begins = visual & ~functional.pad(visual[:, :-1], (1, 0))
    stretch = torch.where(visual, begins.flatten().cumsum(0).view_as(visual), 0)  # counted from 1
    holed = torch.zeros(visual.numel() + 1, dtype=torch.bool, device=visual.device)
    holed = holed.index_fill(0, torch.where(holes, stretch, 0).flatten(), True)
    return visual & ~holed[stretch]


def _strangers(encodings: Encodings[Landed], hidden: Float[Tensor, "b s d"], columns: Bool[Tensor, "b s"]) -> bool:
    """Whether some of these columns came from no encoding of this pruning block: one device sync.

    A picture so small that it lost nothing must keep its rows bit for bit, so they can say nothing of it, and look like
    those of a picture that was encoded outside: what tells the two apart is whether their bits are known.
    """
    *_, unknown = encodings.find(hidden.flatten(0, 1))
    return bool((unknown.view_as(columns) & columns).any())
