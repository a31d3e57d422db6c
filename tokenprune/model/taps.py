"""Hooks that belong to one run: a prefill, an encoding of pictures, a measurement."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn


class Live(threading.local):
    """What runs in this thread. Hooks of runs in other threads see nothing of it.

    The pruner makes one and shares it with its parts for the vision tower. Each field has one owner, which sets it and
    asks what it finds there whether it is its own.

    Attributes:
        encoding: of pictures, by a tower with passes inside it (`vision/forward.py`).
        recording: of the tower's states, while the tower runs (`vision/recorder.py`).
        landing: gives the recording whose rows the projector gets next, or None where nobody keeps it any more.
    """

    encoding: object | None = None
    recording: object | None = None
    landing: Callable[[], object | None] | None = None


class Taps:
    """Hooks of one run in one thread. They are on the modules for that long and no longer.

    What the modules are is asked anew for each run: a LoRA wrapped around one in between is seen. Torch calls a hook
    for every thread that runs the module, and for a moment, while another thread registers it, without keyword
    arguments. So each hook asks first whether this thread is in the run it belongs to.

    Args:
        active: whether the thread that asks is in the run.
    """

    def __init__(self, active: Callable[[], bool]) -> None:
        self._active = active
        self._handles = ExitStack()

    def before(self, module: nn.Module, see: Callable[[Any, dict[str, Any]], Any], first: bool = False) -> None:
        """`see(args, kwargs)` before the module, `first` of its hooks; what it returns, if anything, goes in."""

        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
            return see(args, kwargs) if self._active() and kwargs is not None else None

        self.undo(module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True).remove)

    def after(self, module: nn.Module, see: Callable[[Tensor], None]) -> None:
        """`see(output)` after the module; of a tuple its first entry."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if self._active():
                see(output[0] if isinstance(output, tuple) else output)

        self.undo(module.register_forward_hook(hook).remove)

    def undo(self, last: Callable[[], Any]) -> None:
        """Call this too when the run is over."""
        self._handles.callback(last)

    def close(self) -> None:
        """Take the hooks out and let go of the run, which may own these taps; doing it twice is fine."""
        self._handles.close()
        self._active = _over


def _over() -> bool:
    return False
