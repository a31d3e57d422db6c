"""What a model's modules hold."""

from __future__ import annotations

from typing import Any

from torch import nn


def attributes(module: nn.Module) -> dict[str, Any]:
    """Names and identities of everything that hangs on every submodule, hooks included."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            found[f"{path}.{name}"] = list(value) if isinstance(value, dict) else id(value)
    return found
