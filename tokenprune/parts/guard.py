"""What the engine and its part for the vision tower hold against scorers and mergers: one guard for both.

A part is called under its name (`call`), what it gives is checked (`check`), and whatever cannot be asked without
waiting for the device (`Flag`) is collected by the run that it belongs to and asked about once, at its end (`settle`).
Plain functions over values: what belongs to a forward pass or to an encoding stays there, nothing is kept here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import ScorerError, TokenpruneError

NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
"""What can be sorted everywhere."""

Flag = tuple[TokenpruneError, Bool[Tensor, ""]]
"""Whether all is fine, which the device knows, and the error if it is not."""

NAN = "gave NaN"
LOST = "merges tokens into some that it drops or that do not exist"

T = TypeVar("T")


def own(shown: Tensor) -> Tensor:
    """A copy of what a part is shown, where torch would not notice that it is changed in place."""
    return shown.clone() if shown.is_inference() else shown


def call(who: str, part: Callable[[], T], shown: Iterable[Tensor | None]) -> T:
    """What a part gives. `shown`: tensors that it can reach and others will read; inference tensors go as `own`.

    Raises:
        ScorerError: it failed, or changed in place what it was shown.
        TokenpruneError: raised inside of it, as it is: it says by itself what to do. A note names the part.
        torch.OutOfMemoryError: as it is: callers catch it to try less at once.
    """
    shared = [tensor for tensor in shown if tensor is not None and not tensor.is_inference()]  # those count no versions
    versions = [tensor._version for tensor in shared]
    try:
        given = part()
    except TokenpruneError as error:
        if sys.version_info >= (3, 11):
            error.add_note(f"raised inside {who.rstrip(',')}")
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ScorerError(f"{who} failed with {type(error).__name__}: {error}") from error
    if versions != [tensor._version for tensor in shared]:
        raise ScorerError(f"{who} changed what it was shown in place: work on a copy, such as hidden.clone()")
    return given


def check(who: str, what: str, given: Any, like: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ScorerError unless a part gave a tensor of this shape and device, and of one of these dtypes."""
    if not isinstance(given, Tensor):
        raise ScorerError(f"{who} must give {what}: expected a tensor, got {type(given).__name__}")
    if given.shape != like.shape:
        raise ScorerError(f"{who} must give {what}: expected shape {tuple(like.shape)}, got {tuple(given.shape)}")
    if given.device != like.device:
        raise ScorerError(f"{who} must give {what}: expected them on {like.device}, got {given.device}")
    if given.dtype not in dtypes:
        wanted = str(dtypes[0]) if len(dtypes) == 1 else "real numbers"
        raise ScorerError(f"{who} must give {what}: expected {wanted}, got {given.dtype}")


def broken(who: str, how: str) -> ScorerError:
    """The error about numbers that the run went on with."""
    return ScorerError(f"{who} {how}: this pass's outputs and cache are not to be used")


def settle(flags: Sequence[Flag]) -> None:
    """Raise the error of the first flag that is not fine: one device sync, none without flags."""
    if flags:
        errors, fine = zip(*flags, strict=True)
        good = torch.stack([flag.to(fine[0].device) for flag in fine]).tolist()
        if not all(good):
            raise errors[good.index(False)]
