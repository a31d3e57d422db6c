"""The Entropy Collapse Layer (arXiv 2602.17196, section 3.3), measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import ops
from ..errors import UnsupportedModelError
from ..model.ranks import Ranks
from ..model.taps import Taps
from ..parts.adapter import Adapter
from ..parts.attention import Attention


@dataclass(frozen=True)
class Collapse:
    """Where the entropy of visual tokens drops most, and whether that is a collapse.

    The paper calls the drop sharp and gives no number for it. `found` asks for what the word means at least: entropy
    does not come back, so its mean over the later blocks lies below that over the blocks up to `layer`.

    Attributes:
        layer: blocks before the drop, 1 to depth - 1; ties go to the earlier block.
        depth: blocks.
        drop: from that block to the next, in nats; below zero where entropy only rises.
        found: whether it is a collapse. Schedules prune at `layer` either way.
    """

    layer: int
    depth: int
    drop: float
    found: bool

    def tell(self, interval: Sequence[float] | None = None) -> str:
        """In words; `interval` is that of the drop."""
        span = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
        drop = f"{self.drop:.4f}{span} nats"
        if self.found:
            return f"layer {self.layer} of {self.depth}, drop {drop}"
        return (
            f"no collapse found, entropy drops most after layer {self.layer} of {self.depth}, by {drop}, and does not "
            "stay down"
        )

    def entry(self, model: str, source: str) -> dict[str, Any]:
        """As in `configs/ecl/`."""
        measured = {"layer": self.layer, "collapse": self.found, "drop": round(self.drop, 4)}
        return {"depth": self.depth, **measured, "models": [model], "source": source}


def collapse(entropies: Sequence[float]) -> Collapse:
    """The steepest drop of a curve of entropies, block by block. Needs two blocks at least."""
    drops = [before - after for before, after in pairwise(entropies)]
    layer = max(range(len(drops)), key=drops.__getitem__) + 1
    found = fmean(entropies[layer:]) < fmean(entropies[:layer])
    return Collapse(layer, len(entropies), drops[layer - 1], found)


@torch.no_grad()
def layer_spectra(
    adapter: Adapter,
    decoder: nn.Module,
    visual: Callable[[], Bool[Tensor, "b s"]],
    run: Callable[[], object],
    states: Sequence[str] = ("queries", "keys"),
    ranks: Ranks | None = None,
) -> dict[str, list[Float[Tensor, "e"]]]:
    """Eigenvalues of the visual tokens' states in every block, ascending, while `run()` does one prefill.

    Of the first prompt that has visual tokens; `visual` says which columns of the blocks hold them, asked when the
    first block runs. The decoder drops nothing meanwhile. `states` are `queries`, `keys`. `ranks` add their heads.
    """

    @cache
    def where() -> tuple[int, Tensor]:
        marked = visual()
        row = int(marked.any(1).int().argmax())
        return row, marked[row].nonzero()[:, 0]

    found: dict[str, list[Tensor]] = {name: [] for name in states}
    attentions = [adapter.attention(block) for block in adapter.blocks(decoder)]

    def measure(attention: Attention, name: str, output: Tensor) -> None:
        row, columns = where()
        heads = attention.heads(name, output[row, columns.to(output.device)])
        heads = heads if ranks is None else ranks.all_heads(name, heads)
        found[name].append(ops.layer_spectrum(rearrange(heads, "h n dh -> n (h dh)")).cpu())

    thread = threading.get_ident()
    with closing(Taps(lambda: threading.get_ident() == thread)) as taps:
        for number, attention in enumerate(attentions):
            if attention is None:
                raise UnsupportedModelError(
                    f"block {number} has no queries and keys, and an entropy is measured of those of every block: give "
                    "a layer, by a schedule such as fixed"
                )
            for name in states:
                taps.after(attention.modules[name], partial(measure, attention, name))
        run()
    return found


def layer_entropies(
    adapter: Adapter,
    decoder: nn.Module,
    visual: Callable[[], Bool[Tensor, "b s"]],
    run: Callable[[], object],
    states: str = "queries",
    ranks: Ranks | None = None,
) -> list[float]:
    """Matrix entropy of the visual tokens' states in every block, in nats; arguments as in `layer_spectra`."""
    spectra = layer_spectra(adapter, decoder, visual, run, (states,), ranks)[states]
    return [float(ops.spectral_entropy(spectrum)) for spectrum in spectra]
