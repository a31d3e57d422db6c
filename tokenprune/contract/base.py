"""What the contract's classes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from .cases import Part


class Contract:
    """Inherit one of its classes, and name in `parts` what it shall test: names, or settings as in a recipe."""

    parts: ClassVar[tuple[Part, ...]] = ()

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """The models are tiny: more threads only wait for each other."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
