"""Random features of pictures, in the forms in which models take what their towers computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .prompt import first

Form = Callable[[list[Tensor], Any], BaseModelOutputWithPooling]
"""How a model wants features: what it is handed, from a tensor for each picture and its config."""


class Encoded(BaseModelOutputWithPooling):  # type: ignore[misc]  # transformers has no types
    """What a tower computed; whatever else a model asks of it is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def features(model: Any, sizes: Sequence[int]) -> list[Float[Tensor, "n d"]]:
    """Of each picture, as wide as the embeddings and at least about as large."""
    table = model.get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(1)
    scale = max(float(table.std()), 0.2)
    return [scale * torch.randn(tokens, table.shape[1], generator=generator) for tokens in sizes]


def forms(model: Any) -> Iterator[Form]:
    """A tensor for each picture, one for all, one with an axis of equal tiles, and one for each of several blocks."""
    if "mm_encoder_outputs" in inspect.signature(model.forward).parameters:
        yield partial(_encoded, list)
        yield partial(_encoded, torch.cat)
        yield partial(_encoded, lambda each: torch.cat(each).view(-1, 2, each[0].shape[1]))
        yield _numbered


def _encoded(form: Callable[[list[Tensor]], Any], each: list[Tensor], config: Any) -> Encoded:
    """With what is added to later blocks, where the config names blocks of the tower that it comes from."""
    indexes = first(config, ("deepstack_visual_indexes",))
    later = None if indexes is None else [form([one.roll(i + 1, 1) for one in each]) for i in range(len(indexes))]
    return _filled(pooler_output=form(each), last_hidden_state=torch.cat(each), deepstack_features=later)


def _numbered(each: list[Tensor], config: Any) -> Encoded:
    """Nothing but what is added, with the number of the decoder block that it is for."""
    return _filled(deepstack_features=[(block, [one.roll(block, 1) for one in each]) for block in range(3)])


def _filled(**attributes: Any) -> Encoded:
    encoded = Encoded()
    for name, value in attributes.items():
        setattr(encoded, name, value)
    return encoded
