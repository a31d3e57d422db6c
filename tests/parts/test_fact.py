"""Facts that schedules need: looked up, or measured once in the first prefill, for whoever registers one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from families import ONE, inputs, model
from torch import nn

import tokenprune
from tokenprune import Adapter, Fact, PlanInput, Sample, Scheduler
from tokenprune.errors import UnknownNameError
from tokenprune.registry import Entry, registry


@dataclass(frozen=True)
class Half(Fact):
    """The middle of the decoder; it counts how often it was asked and remembers in memory."""

    about = "the middle"
    memory: ClassVar[dict[str, int]] = {}
    calls: ClassVar[list[str]] = []

    def known(self, model: nn.Module, adapter: Adapter) -> int | None:
        self.calls.append("known")
        return self.memory.get("here")

    def measure(self, model: nn.Module, adapter: Adapter, samples: Iterable[Sample]) -> dict[str, int]:
        (sample,) = samples
        sample.run()
        self.calls.append("measure")
        return {"visual": int(sample.visual().sum()), "layer": 3}

    def planned(self, value: dict[str, int]) -> int:
        return value["layer"]

    def remember(self, model: nn.Module, adapter: Adapter, value: dict[str, int]) -> Path | None:
        self.memory["here"] = value["layer"]
        return Path("memory")

    def tell(self, value: dict[str, int]) -> str:
        return f"layer {value['layer']} on {value['visual']} tokens"


@dataclass(frozen=True)
class AtHalf(Scheduler):
    needs = ("half",)

    def plan(self, given: PlanInput) -> dict[int, int]:
        return {given.facts["half"]: 4} if given.visual > 4 else {}


RECIPE: dict[str, Any] = {"prune": [{"scorer": "random", "schedule": AtHalf()}]}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> type[Half]:
    monkeypatch.setitem(registry().entries["fact"], "half", Entry("fact", "half", Half, "stranger"))
    Half.memory.clear()
    Half.calls.clear()
    return Half


def test_a_fact_is_measured_once_and_then_known(half: type[Half], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tokenprune")
    lm, given = model("llava"), inputs("llava", ONE)
    for _ in range(2):
        with torch.no_grad(), tokenprune.prune(lm, RECIPE) as pruning:
            lm(**given)
            first = pruning.state
            lm(**given)
        assert first is not None
        assert list(first.views) == [3]
    assert half.calls == ["known", "measure", "known"]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["middle, measured on this model's first prompt: layer 3 on 16 tokens, remembered in memory"]


def test_a_fact_that_nobody_registered_is_named() -> None:
    with pytest.raises(UnknownNameError, match="there is no fact 'half'"):
        tokenprune.attach(model("llava"), RECIPE)
    assert not model("llava").model._forward_pre_hooks
