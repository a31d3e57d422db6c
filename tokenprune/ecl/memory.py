"""The Entropy Collapse Layer of a model, looked up and remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from .. import outputs
from ..errors import TokenpruneError
from ..model import ranks as parallel
from ..parts.adapter import Adapter
from ..shipped import configs
from .measure import collapse


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
        outputs.write(path, json.dumps({"layer": collapse(entropies).layer, "entropies": list(entropies)}))
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
        attention = adapter.attention(block)
        for projection in attention.modules.values() if attention else ():
            weight = parallel.whole(projection.weight)
            if weight.is_meta:
                return None
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 256)].to("cpu", torch.float32)
            digest.update(str(tuple(weight.shape)).encode())
            digest.update(sample.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]
