"""The oracle's other half inside the vision tower: dropped rows are hidden by a mask, on the unpruned model.

Written without the engine: each block is computed again, with a dense mask over all rows of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

import tokenprune.vision.forward as vision
from tokenprune.vision.groups import LEFT


def towers(family: str, base: Any) -> list[Any]:
    if family == "qwen2_5_vl":
        return [base.visual]
    names = ("image_tower", "video_tower") if family == "video_llava" else ("vision_tower",)
    return [getattr(base, name) for name in names]


def blocks(family: str, tower: Any) -> list[Any]:
    if family == "qwen2_5_vl":
        return list(tower.blocks)
    part = getattr(tower, "vision_model", tower)  # 5.19 has one more layer of modules
    return list(part.encoder.layers)


@contextmanager
def seen_gone(monkeypatch: Any) -> Iterator[list[Tensor]]:
    """Of every run of a tower, in order: before which block each of its rows went, or -1."""
    runs: list[Tensor] = []
    after_projector = vision.VisionPruner.after_projector

    def spy(self: Any, projector: Any, args: Any, output: Any) -> Any:
        given = after_projector(self, projector, args, output)
        survivors = self.encoding.survivors
        layers, _, _ = self.code.parts(survivors.codes)
        runs.append(layers.where(survivors.codes != LEFT, -1).repeat_interleave(survivors.unit))
        return given

    with monkeypatch.context() as patch:
        patch.setattr(vision.VisionPruner, "after_projector", spy)
        yield runs


@contextmanager
def hidden_in_tower(family: str, model: Any, runs: Sequence[Tensor]) -> Iterator[None]:
    """In the k-th run of a tower from now on, hide from block i on what `runs[k]` says went before block i or earlier.

    Rows are counted without the CLS rows where the model cuts them off: those are always seen.
    """
    base, left = model.model, list(runs)
    now: list[Tensor] = []

    def start(module: Any, args: Any) -> None:
        now[:] = [left.pop(0)]

    def redo(number: int, block: Any, args: Any, kwargs: Any, output: Any) -> Any:
        (gone,) = now
        (redone,) = (_qwen if family == "qwen2_5_vl" else _clip)(block, number, gone, args, kwargs)
        return (redone, *output[1:]) if isinstance(output, tuple) else redone

    with ExitStack() as hooks:
        for tower in towers(family, base):
            hooks.callback(tower.register_forward_pre_hook(start).remove)
            for number, block in enumerate(blocks(family, tower)):
                handle = block.register_forward_hook(partial(redo, number), prepend=True, with_kwargs=True)
                hooks.callback(handle.remove)
        yield


def _attend(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """heads x r x dh, and which keys each row may see."""
    logits = (queries @ keys.mT * scaling).masked_fill(~allowed, float("-inf"))
    return logits.softmax(-1) @ values


def _clip(block: Any, number: int, gone: Tensor, args: Any, kwargs: Any) -> tuple[Tensor]:
    hidden = args[0] if args else kwargs["hidden_states"]
    b, length = hidden.shape[:2]
    attention = block.self_attn
    patches = gone.reshape(b, -1)
    cut = length - patches.shape[1]  # the model cut the CLS rows off, so nobody says that they stay
    patches = torch.cat([patches.new_full((b, cut), -1), patches], 1)
    seen = (patches < 0) | (patches > number)

    def heads(module: Any, states: Tensor) -> Tensor:
        return module(states).view(b, length, -1, attention.head_dim).transpose(1, 2)

    normed = block.layer_norm1(hidden)
    queries, keys, values = (heads(getattr(attention, name), normed) for name in ("q_proj", "k_proj", "v_proj"))
    attended = _attend(queries, keys, values, seen[:, None, None], attention.head_dim**-0.5)
    hidden = hidden + attention.out_proj(attended.transpose(1, 2).reshape(b, length, -1))
    return (hidden + block.mlp(block.layer_norm2(hidden)),)


def _qwen(block: Any, number: int, gone: Tensor, args: Any, kwargs: Any) -> tuple[Tensor]:
    hidden = args[0] if args else kwargs["hidden_states"]
    rows, attention = len(hidden), block.attn
    ends = kwargs["cu_seqlens"]
    segment = torch.bucketize(torch.arange(rows), ends[1:].to(torch.long), right=True)
    allowed = (segment[:, None] == segment) & ((gone < 0) | (gone > number))
    allowed |= torch.eye(rows, dtype=torch.bool)  # a row that is hidden sees itself: nobody reads it
    mixed = attention.qkv(block.norm1(hidden)).view(rows, 3, attention.num_heads, -1).permute(1, 2, 0, 3)
    cos, sin = kwargs["position_embeddings"]

    def rotate(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat([-second, first], -1) * sin

    attended = _attend(rotate(mixed[0]), rotate(mixed[1]), mixed[2], allowed, attention.head_dim**-0.5)
    hidden = hidden + attention.proj(attended.transpose(0, 1).reshape(rows, -1))
    return (hidden + block.mlp(block.norm2(hidden)),)
