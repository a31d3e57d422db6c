"""What a pruned prompt batch cost and kept."""

from __future__ import annotations

import io
from dataclasses import dataclass

from ..plan.cost import DecoderSize, KvBlocks
from ..state.prompt import Prompt


@dataclass(frozen=True)
class StageReport:
    """One stage: `kept` of `total` visual tokens, one entry per prompt.

    Inside the vision tower `layer` is negative, as in `overlay`, and `vision_layer` counts the blocks that ran before.
    """

    layer: int
    scorer: str
    kept: list[int]
    total: list[int]
    vision_layer: int | None = None

    @property
    def where(self) -> str:
        """The layer in words."""
        return f"layer {self.layer}" if self.vision_layer is None else f"tower layer {self.vision_layer}"


@dataclass(frozen=True)
class KvMib:
    """KV cache of the visual tokens of the whole batch, in MiB (2^20 bytes)."""

    full: float
    pruned: float


@dataclass(frozen=True)
class Report:
    """Stages in order, KV MiB, the share of the decoder's prefill FLOPs that is left, and per prompt the mean over the
    decoder blocks of the visual tokens that each sees; which blocks have that KV, where not every one has all.
    """

    stages: list[StageReport]
    kv_mib: KvMib
    flops_share: float
    average: list[float]
    kv_blocks: KvBlocks | None = None

    def __str__(self) -> str:
        from rich.console import Console  # when a report is printed: `import` shall not wait for it
        from rich.table import Table

        table = Table(title="visual tokens kept, per prompt", title_justify="left", min_width=36)
        table.add_column("after", justify="right")
        table.add_column("scorer")
        table.add_column("kept")
        for stage in self.stages:
            kept = ", ".join(f"{kept}/{total}" for kept, total in zip(stage.kept, stage.total, strict=True))
            table.add_row(stage.where, stage.scorer, kept)
        out = io.StringIO()
        Console(file=out, width=100).print(table)
        return out.getvalue() + self.costs

    @property
    def costs(self) -> str:
        """What stands below the table, in words."""
        kv, means = self.kv_mib, ", ".join(f"{mean:.1f}" for mean in self.average)
        average = f"average over the layers {means}\n" if means else ""
        where = f" ({self.kv_blocks})" if self.kv_blocks else ""
        return (
            f"{average}KV of visual tokens {kv.pruned:.2f} of {kv.full:.2f} MiB{where}, "
            f"decoder prefill FLOPs {self.flops_share:.1%}"
        )


def report(state: Prompt | None, geometry: DecoderSize, element_bytes: int) -> Report:
    """Of the last prompt batch; empty before the first one and when nothing was dropped."""
    if state is None:
        return Report([], KvMib(0.0, 0.0), 1.0, [])
    stages = [
        StageReport(
            layer, type(stage.step.scorer).__name__.lower(), list(stage.kept), list(state.counts), stage.vision_layer
        )
        for layer, stage in state.stages.items()
    ]
    average = []
    full_kv = pruned_kv = full_flops = pruned_flops = 0.0
    for row, visual in enumerate(state.counts):
        plan = {layer: stage.kept[row] for layer, stage in state.stages.items()}
        average.append(sum(geometry.tokens(plan, visual)) / geometry.depth)
        text = state.full_view.lengths[row] - visual
        full_kv += geometry.kv_mib({}, visual, element_bytes)
        pruned_kv += geometry.kv_mib(plan, visual, element_bytes)
        full_flops += geometry.prefill_flops({}, visual, text)
        pruned_flops += geometry.prefill_flops(plan, visual, text)
    return Report(stages, KvMib(full_kv, pruned_kv), pruned_flops / full_flops, average, geometry.kv_blocks)
