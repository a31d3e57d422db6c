"""The Entropy Collapse Layer (arXiv 2602.17196, section 3.3): measured, looked up, remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import files, ops, parallel
from ..builtin import configs
from ..errors import TokenpruneError
from ..interfaces import Adapter


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
    ranks: parallel.Ranks | None = None,
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
    blocks = adapter.blocks(decoder)

    def measure(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        row, columns = where()
        mine = output[row, columns.to(output.device)]
        if ranks is not None:
            heads = ranks.all_heads(name, rearrange(mine, "n (h dh) -> h n dh", dh=adapter.head_size(blocks[0])))
            mine = rearrange(heads, "h n dh -> n (h dh)")
        found[name].append(ops.layer_spectrum(mine).cpu())

    with ExitStack() as hooks:
        for block in blocks:
            for name in states:
                hooks.callback(adapter.projections(block)[name].register_forward_hook(partial(measure, name)).remove)
        run()
    return found


def layer_entropies(
    adapter: Adapter,
    decoder: nn.Module,
    visual: Callable[[], Bool[Tensor, "b s"]],
    run: Callable[[], object],
    states: str = "queries",
    ranks: parallel.Ranks | None = None,
) -> list[float]:
    """Matrix entropy of the visual tokens' states in every block, in nats; arguments as in `layer_spectra`."""
    spectra = layer_spectra(adapter, decoder, visual, run, (states,), ranks)[states]
    return [float(ops.spectral_entropy(spectrum)) for spectrum in spectra]


def known(model: Any, adapter: Adapter) -> int | None:
    """The layer measured on exactly these weights and remembered, else the one shipped for this model, else None."""
    depth = len(adapter.blocks(adapter.decoder(adapter.base(model))))
    path = _memory(model, adapter)
    if path is not None:
        try:
            layer = json.loads(path.read_text())["layer"]
        except (OSError, ValueError, KeyError, TypeError):
            layer = None
        if type(layer) is int and 0 < layer < depth:
            return layer
    return shipped(str(getattr(model.config, "_name_or_path", "")), depth)


def shipped(name: str, depth: int) -> int | None:
    """The layer in `configs/ecl/` for a model or shape of this name (its last part) and depth, or None."""
    last = Path(name).name
    for path in sorted((configs() / "ecl").glob("*.yaml")):
        entry = yaml.safe_load(path.read_text())
        if last in (path.stem, *entry["models"]) and entry["depth"] == depth:
            return int(entry["layer"])
    return None


def remember(model: nn.Module, adapter: Adapter, entropies: Sequence[float]) -> Path | None:
    """Write the layer for exactly these weights into the user's cache, atomically; None if that cannot be done."""
    path = _memory(model, adapter)
    if path is None:
        return None
    try:
        files.write(path, json.dumps({"layer": collapse(entropies).layer, "entropies": list(entropies)}))
    except TokenpruneError:
        return None
    return path


def _memory(model: Any, adapter: Adapter) -> Path | None:
    """Where the layer of exactly these weights is remembered; None if they cannot be told from others."""
    mark = fingerprint(model, adapter)
    if mark is None:
        return None
    root = os.environ.get("TOKENPRUNE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tokenprune"
    return Path(root).expanduser() / "ecl" / f"{mark}.json"


def fingerprint(model: Any, adapter: Adapter) -> str | None:
    """Of the sizes and of some weights: the same model in another folder, dtype or attention is the same model.

    None if the weights cannot be read, because they are offloaded.
    """
    blocks = adapter.blocks(adapter.decoder(adapter.base(model)))
    digest = hashlib.sha256(f"{model.config.model_type} {len(blocks)}".encode())
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        for projection in adapter.projections(block).values():
            weight = parallel.whole(projection.weight)
            if weight.is_meta:
                return None
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 256)].to("cpu", torch.float32)
            digest.update(str(tuple(weight.shape)).encode())
            digest.update(sample.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]
