"""torchvision beside any torch, for processes that begin with `import torchvision_ops` (pytest: `-p torchvision_ops`).

Its wheel on PyPI is compiled for a CUDA build of torch. Beside another one all of it works that is Python, which is
what processors of transformers use, once the operators are declared that it asks for when it is imported. It lies in a
folder of its own, because transformers takes it where it can be found, and it must be found before transformers looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

FOLDER = Path(sys.prefix) / "vision"
"""Where the Makefile puts it."""

if "transformers" in sys.modules:
    raise ImportError("torchvision_ops must be imported before transformers, which looks for torchvision only once")
sys.path.append(str(FOLDER))
try:
    import torchvision
except RuntimeError:  # operator torchvision::nms does not exist
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision as torchvision
