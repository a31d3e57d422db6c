"""One run timed by phase: pictures encoded, prefill, decode steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache, LogitsProcessor


@dataclass(frozen=True)
class Run:
    """One run: milliseconds, the KV cache after the prefill (text too), and the most GPU memory held at once."""

    tower_ms: float
    prefill_ms: float
    decode_ms_per_token: float
    total_ms: float
    kv_mib: float
    peak_mib: float | None


class Clock(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing: reads the time after the prefill and after every decode step.

    `generate` calls logits processors once for each new token, so they know when a phase ends without a hook.

    Attributes:
        times: seconds, as `now` says them; the first is the end of the prefill.
        kv: bytes that the cache held after the prefill.
    """

    def __init__(self, now: Callable[[], float], cache: DynamicCache) -> None:
        self.now, self.cache = now, cache
        self.times: list[float] = []
        self.kv = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(self.now())
        if len(self.times) == 1:
            held = (part for layer in self.cache.layers for part in (layer.keys, layer.values))
            self.kv = sum(part.numel() * part.element_size() for part in held)
        return scores
