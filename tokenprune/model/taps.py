"""Hooks that belong to one run: a prefill, an encoding of pictures, a measurement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Live(threading.local):
    """What runs in this thread. Hooks of runs in other threads see nothing of it.

    The pruner makes one and shares it with its parts for the vision tower. Each field has one owner, which sets it and
    asks what it finds there whether it is its own.

    Attributes:
        encoding: of pictures, by a tower with passes inside it (`vision/forward.py`).
        recording: of the tower's states, while the tower runs (`vision/recorder.py`).
        landing: gives the recording whose rows the projector gets next, or None where nobody keeps it any more.
        forward_pass: of the base model (`pruner.py`).
        drafts: how many logits besides the last the pass to come is asked for.
        paused: whether passes go by unseen.
    """

    encoding: object | None = None
    recording: object | None = None
    landing: Callable[[], object | None] | None = None
    forward_pass: Any = None
    drafts: int = 0
    paused: bool = False


class Taps:
    """Hooks of one run in one thread. They are on the modules for that long and no longer.

    What the modules are is asked anew for each run: a LoRA wrapped around one in between is seen. Torch calls a hook
    for every thread that runs the module, and for a moment, while another thread registers it, without keyword
    arguments. So each hook asks first whether this thread is in the run it belongs to.

    Args:
        active: whether the thread that asks is in the run.
        among: taps that are not closed, in any thread: these join them until they are.
    """

    def __init__(self, active: Callable[[], bool], among: set[Taps] | None = None) -> None:
        self._active = active
        self._handles = ExitStack()
        if among is not None:
            among.add(self)
            self.undo(partial(among.discard, self))

    def before(self, module: nn.Module, see: Callable[[Any, dict[str, Any]], Any], first: bool = False) -> None:
        """`see(args, kwargs)` before the module, `first` of its hooks; what it returns, if anything, goes in."""

        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
            return see(args, kwargs) if self._active() and kwargs is not None else None

        self.undo(module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True).remove)

    def after(self, module: nn.Module, see: Callable[[Tensor], None], first: bool = False) -> None:
        """`see(output)` after the module, of a tuple its first entry, `first` of its hooks."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if self._active():
                see(output[0] if isinstance(output, tuple) else output)

        self.undo(module.register_forward_hook(hook, prepend=first).remove)

    def change(self, module: nn.Module, become: Callable[[Tensor], Tensor], first: bool = False) -> None:
        """The module's output becomes `become(output)`, of a tuple its first entry, `first` of its hooks."""

        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            if not self._active():
                return None
            return (become(output[0]), *output[1:]) if isinstance(output, tuple) else become(output)

        self.undo(module.register_forward_hook(hook, prepend=first).remove)

    def undo(self, last: Callable[[], Any]) -> None:
        """Call this too when the run is over."""
        self._handles.callback(last)

    def close(self) -> None:
        """Take the hooks out and let go of the run, which may own these taps; doing it twice is fine."""
        self._handles.close()
        self._active = _over


def _over() -> bool:
    return False


class BlockHooks:
    """Pre-hooks on decoder blocks, from some block on. Torch's path through a hooked module costs every call, so they
    are there only while passes need them.

    At rest one is left, on the first block that lacks columns: it sees whether the model found something to hide.
    Compiled code does not notice hooks that come or go. Once any may run, hooks stay until `close`.

    Args:
        blocks: of the decoder.
        see: `see(number)` is the hook of a block, with keywords.
    """

    def __init__(self, blocks: Sequence[nn.Module], see: Callable[[int], Callable[..., Any]]) -> None:
        self._blocks, self._see = blocks, see
        self._handles: dict[int, RemovableHandle] = {}
        self._keep = False
        self.first = len(blocks)  # from here on all are hooked

    def hook(self, first: int, keep: bool) -> None:
        """Every block from `first` on; with `keep` for good, in compiled code too."""
        fresh = keep and not self._keep
        self._keep = self._keep or keep
        if first < self.first:
            for number in range(first, self.first):
                self.watch(number)
            self.first, fresh = first, True
        if fresh and self._keep:
            torch.compiler.reset()

    def watch(self, number: int) -> None:
        """One block."""
        if number not in self._handles:
            hook = self._see(number)
            self._handles[number] = self._blocks[number].register_forward_pre_hook(hook, with_kwargs=True)

    def rest(self, watched: int) -> None:
        """Take all out but one."""
        if not self._keep:
            for number in [number for number in self._handles if number != watched]:
                self._handles.pop(number).remove()
            self.first = len(self._blocks)

    def close(self) -> None:
        """Take all out."""
        while self._handles:
            self._handles.popitem()[1].remove()
        self.first, self._keep = len(self._blocks), False
