"""What the contract's classes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch

from .cases import Part
from .families import Family


class Contract:
    """Inherit one of its classes, and name in `parts` what it shall test: names, or settings as in a recipe.

    `families` are tested in beside those that are shipped: an adapter needs a tiny model of its own.
    """

    parts: ClassVar[tuple[Part, ...]] = ()
    families: ClassVar[tuple[Family, ...]] = ()

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """The models are tiny: more threads only wait for each other."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @staticmethod
    def check_value(part: Any) -> None:
        """A frozen dataclass: two with the same settings are the same."""
        assert dataclasses.is_dataclass(part)
        assert not isinstance(part, type)
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.anything = 1  # type: ignore[attr-defined]
        twin = dataclasses.replace(part)
        assert twin == part
        assert hash(twin) == hash(part)
