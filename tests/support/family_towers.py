"""Vision towers of all families, seen without the engine: the rows that a token is made of, and what attention hides.

Attention is a function of our own, put in the place of the model's: it sees every row of a run, hides those it is told
to, and notes how much attention each row got.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokenprune.vision.forward as vision
from tokenprune.parts.vision import VisionAdapter
from tokenprune.vision.groups import LEFT

PACKED = ("qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v")  # 2 x 2 patches are neighbours
GRIDS = ("internvl", "gemma3", "smolvlm", "idefics3", "aya_vision", "cohere2_vision", "llama4")  # of 2 x 2 patches
SINGLE = ("paligemma", "llava_onevision", "llava_next_video")  # a patch is a token
CLS_FIRST = ("internvl", "llava_next_video")


def rows_of_tokens(family: str, tower: Any, shape: Sequence[int], given: dict[str, Any]) -> list[list[int]]:
    """The rows behind each token, in a run of a tower whose rows are of this shape, one after the other."""
    if family in PACKED:
        return [[4 * unit + i for i in range(4)] for unit in range(shape[0] // 4)]
    if family == "video_llama_3":
        sides = given["merge_sizes"].tolist()
        rows, first = [], 0
        for (t, h, w), side in zip(given["grid_thw"].tolist(), sides, strict=True):
            rows += [list(range(i, i + side**2)) for i in range(first, first + t * h * w, side**2)]
            first += t * h * w
        return rows
    if family == "mistral3":
        rows, first = [], 0
        for height, width in (torch.as_tensor(given["image_sizes"]) // tower.patch_size).tolist():
            rows += squares(first, height, width, 2)
            first += height * width
        return rows
    if family.startswith("gemma4"):
        return [token for i, places in enumerate(given["pixel_position_ids"]) for token in by_place(i, places)]
    pictures, length = shape[:2]
    cls = int(family in CLS_FIRST)
    across = round((length - cls - (family == "llama4")) ** 0.5)
    side = 1 if family in SINGLE else 2
    return [token for i in range(pictures) for token in squares(i * length + cls, across, across, side)]


def squares(first: int, height: int, width: int, side: int) -> list[list[int]]:
    return [
        [first + (side * row + y) * width + side * column + x for y in range(side) for x in range(side)]
        for row in range(height // side)
        for column in range(width // side)
    ]


def by_place(picture: int, places: Tensor) -> list[list[int]]:
    """Squares of 2 x 2 places, column first; -1 stands for padding."""
    tokens: dict[tuple[int, int], list[int]] = {}
    for row, (x, y) in enumerate(places.tolist()):
        if x >= 0:
            tokens.setdefault((y // 2, x // 2), []).append(picture * len(places) + row)
    return [tokens[place] for place in sorted(tokens)]


@dataclass
class Run:
    """One run of a tower.

    Attributes:
        rows: of each token.
        gone: before which block each row went, or -1.
        received: by block, of each row.
    """

    rows: list[list[int]]
    gone: Tensor
    received: list[Tensor] = field(default_factory=list)


@contextmanager
def tokens_gone(monkeypatch: Any) -> Iterator[list[Tensor]]:
    """Of every run of a tower, in order: before which block each token went, or -1."""
    runs: list[Tensor] = []
    after_projector = vision.VisionPruner.after_projector

    def spy(self: Any, projector: Any, args: Any, output: Any) -> Any:
        given = after_projector(self, projector, args, output)
        codes = self.encoding.survivors.codes
        runs.append(self.code.parts(codes)[0].where(codes != LEFT, -1))
        return given

    with monkeypatch.context() as patch:
        patch.setattr(vision.VisionPruner, "after_projector", spy)
        yield runs


@contextmanager
def own_attention(family: str, adapter: VisionAdapter, base: Any, gone: Sequence[Tensor] = ()) -> Iterator[list[Run]]:
    """All runs of towers from now on, by attention of our own; in the k-th, tokens are hidden as `gone[k]` says."""
    left, runs = list(gone), list[Run]()
    now: dict[str, Any] = {}

    def start(tower: Any, args: Any, kwargs: dict[str, Any]) -> None:
        now.clear()
        now.update(tower=tower, given=dict(kwargs))
        if "grid_thw" not in kwargs and len(args) > 1:
            now["given"]["grid_thw"] = args[1]

    def begin(number: int, block: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_state"]
        if number == 0:
            rows = rows_of_tokens(family, now["tower"], hidden.shape, now["given"])
            run = Run(rows, torch.full((hidden.shape[:-1].numel(),), -1))
            if left:
                layers = left.pop(0)
                assert len(layers) == len(rows)
                for token, layer in zip(rows, layers.tolist(), strict=True):
                    run.gone[token] = layer
            runs.append(run)
        now.update(number=number, first=0)
        runs[-1].received.append(torch.zeros(len(runs[-1].gone)))

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, scaling: Any = None, **_: Any) -> Any:
        run, number, first = runs[-1], now["number"], now["first"]
        b, _, length, size = k.shape
        now["first"] = first + b * length
        seen = ((run.gone < 0) | (run.gone > number))[first : now["first"]].view(b, 1, 1, length)
        seen = seen | torch.eye(length, dtype=torch.bool)  # a row that is hidden sees itself: nobody reads it
        logits = q @ k.transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
        if attention_mask is not None:
            logits = logits + attention_mask  # as eager attention takes it
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        asking = weights
        if attention_mask is not None:  # rows that nobody may see pad their picture: what they see does not count
            asking = weights * (attention_mask.amax(2) == 0)[..., None]
        run.received[number][first : now["first"]] = asking.sum(2).mean(1).flatten().detach()
        return (weights @ v).transpose(1, 2), None

    with ExitStack() as hooks:
        for functions, own in ((ALL_ATTENTION_FUNCTIONS, attend), (ALL_MASK_ATTENTION_FUNCTIONS, eager_mask)):
            functions.register("own", own)
            hooks.callback(functions._global_mapping.pop, "own")
        for tower in adapter.towers(base):
            configs = {id(part.config): part.config for part in tower.modules() if hasattr(part, "config")}
            for config in configs.values():
                hooks.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = "own"
            hooks.callback(tower.register_forward_pre_hook(start, with_kwargs=True).remove)
            for number, block in enumerate(adapter.blocks(tower)):
                hook = block.register_forward_pre_hook(partial(begin, number), with_kwargs=True)
                hooks.callback(hook.remove)
        yield runs
