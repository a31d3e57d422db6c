"""Hooks of one run in one thread."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from tokenprune.model.taps import Live, Taps


def hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def test_a_run_is_seen_in_its_own_thread_only() -> None:
    live, module, seen = Live(), nn.Linear(2, 2), []
    live.encoding = run = object()
    taps = Taps(lambda: live.encoding is run)
    taps.before(module, lambda args, kwargs: seen.append("before"))
    taps.after(module, lambda output: seen.append("after"))
    thread = threading.Thread(target=lambda: module(torch.ones(1, 2)))
    thread.start()
    thread.join()
    assert not seen
    module(torch.ones(1, 2))
    assert seen == ["before", "after"]


def test_what_is_given_before_goes_in_and_the_first_of_a_tuple_comes_out() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, plus: int = 0) -> tuple[torch.Tensor, str]:
            return x + plus, "more"

    module, taps, seen = Pair(), Taps(lambda: True), []
    taps.before(module, lambda args, kwargs: ((args[0] * 2,), {"plus": kwargs["plus"] + 1}))
    taps.after(module, seen.append)
    module(torch.ones(1), plus=3)
    assert seen == [torch.tensor([6.0])]


def test_a_call_without_keywords_is_of_another_thread() -> None:
    """torch adds a hook before it notes that it takes keywords."""
    module, taps = nn.Identity(), Taps(lambda: True)
    taps.before(module, lambda args, kwargs: args)
    (hook,) = hooks(module)
    assert hook(module, (1,)) is None
    assert hook(module, (1,), {}) == (1,)


def test_a_run_that_is_over_leaves_nothing() -> None:
    module, undone, among = nn.Identity(), [], set[Taps]()
    taps = Taps(lambda: True, among)
    taps.before(module, lambda args, kwargs: args)
    taps.undo(lambda: undone.append(1))
    (hook,) = hooks(module)
    assert among == {taps}
    taps.close()
    taps.close()
    assert not hooks(module)
    assert undone == [1]
    assert not among
    assert hook(module, (1,), {}) is None  # as a thread may call it that looked which hooks there are before
