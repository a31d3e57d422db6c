"""What numbers depend on besides what was asked: the model, versions of libraries, the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import ecl
from ..model.anatomy import Anatomy
from .loading import Loaded


def of_rows(command: str, loaded: Loaded) -> dict[str, Any]:
    """Of rows of any command, times apart: these numbers are the same on every machine of one kind."""
    config = loaded.model.config
    return {
        "command": command,
        "model": Path(str(config._name_or_path)).name,
        "weights": ecl.fingerprint(loaded.model, Anatomy.of(loaded.model).adapter),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "attention": str(config._attn_implementation),
        "device": loaded.model.device.type,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Of times."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU of {os.cpu_count()} cores",
        "threads": None if gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
