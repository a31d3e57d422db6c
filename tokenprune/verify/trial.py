"""A tiny model of any config with random weights, and a batch of prompts with random picture features for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UnsupportedModelError
from . import fit
from .features import Form, features, forms
from .prompt import Prompt, merge, placeholder, prompt, without_columns
from .shrink import said, shrunk


@dataclass(frozen=True, eq=False)
class Trial:
    """What pruning is checked on.

    Attributes:
        model: tiny, its weights random, its attention eager.
        prompt: the batch.
        arguments: of the model's forward, but for features.
        form: of picture features. None: they cannot be handed over, or change nothing. Then placeholders are embedded
            as they are, which says nothing of what a model adds for its pictures in later blocks.
    """

    model: Any
    prompt: Prompt
    arguments: Mapping[str, Tensor | None]
    form: Form | None

    @classmethod
    def of(cls, config: Any) -> Trial:
        """For a config of any size.

        Raises:
            UnsupportedModelError: pictures are not columns of its decoder, or it cannot be made small, built or run.
        """
        if (reason := without_columns(config)) is not None:
            raise UnsupportedModelError(f"{config.model_type} has no visual tokens to prune: {reason}")
        small = shrunk(config)
        try:
            return cls._running(build(small))
        except Exception as error:
            raise UnsupportedModelError(
                f"a small {config.model_type} does not run, so pruning cannot be checked on one: {said(error)}"
            ) from error

    @classmethod
    def _running(cls, model: Any) -> Trial:
        """Features in a form that counts, or none. Raises what the model raises without."""
        image = placeholder(model.config) or 0
        plain = [cls(model, made, arguments(model, made), None) for made in _prompts(model.config, image)]
        for trial in plain:
            for form in forms(model):
                one = cls(model, trial.prompt, trial.arguments, form)
                if one._counts():
                    return one
        demanded = [name for name, value in plain[0].arguments.items() if value is None]
        try:
            logits = plain[0].logits()
        except Exception as error:
            if demanded:
                raise ValueError(f"its forward demands {', '.join(demanded)}") from error
            raise
        if not (logits.isfinite().all() and logits.shape[:2] == plain[0].prompt.ids.shape):
            raise ValueError("its logits are not finite numbers, a row for each column of the prompt")
        return plain[0]

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward, new at each call: models take out of them what they used."""
        return self._given(1)

    def alone(self, row: int) -> Trial:
        """One prompt of the batch, without its padding."""
        made = self.prompt.alone(row)
        form = self.form if made.sizes else None
        return replace(self, prompt=made, arguments=arguments(self.model, made), form=form)

    @property
    def visual(self) -> Bool[Tensor, "b s"]:
        """Which columns stand for picture tokens."""
        return self.prompt.visual

    @torch.no_grad()
    def logits(self, sign: int = 1) -> Float[Tensor, "b s v"]:
        """Of the whole batch in one pass, by the model alone. -1: of pictures with the opposite features."""
        return self.model(**self._given(sign), use_cache=False).logits

    def _given(self, sign: int) -> dict[str, Any]:
        given: dict[str, Any] = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in self.arguments.items()
        }
        if self.form is not None:
            before, sizes = self.prompt.earlier, self.prompt.sizes
            pictures = [sign * picture for picture in features(self.model, (*before, *sizes))[len(before) :]]
            given["mm_encoder_outputs"] = {"image": self.form(pictures, self.model.config)}
        return given

    def _counts(self) -> bool:
        """Whether features can be handed over in this form, and change what the model says."""
        try:
            one, other = self.logits(), self.logits(-1)
        except Exception:
            return False
        every = bool(one.isfinite().all()) and one.shape[:2] == self.prompt.ids.shape
        return every and bool((one - other).abs().max() > 1e-3)


def _prompts(config: Any, image: int) -> list[Prompt]:
    return [prompt(config, image, newlines) for newlines in (False, True)]


def arguments(model: Any, made: Prompt) -> dict[str, Tensor | None]:
    """What the model's forward takes beside features; None for what it demands and needs for pixels only."""
    side = merge(model.config)
    grid = torch.tensor([[1, h * side, w * side] for h, w in made.grids]).view(-1, 3)
    offered = {
        "input_ids": made.ids,
        "attention_mask": made.mask,
        "mm_token_type_ids": made.visual.int(),
        "token_type_ids": made.visual.int(),
        "image_grid_thw": grid,
        "image_grid_hw": grid[:, 1:],
        "image_merge_sizes": torch.full((len(grid),), side),
    }
    wanted = inspect.signature(model.forward).parameters.values()
    demanded = {one.name: None for one in wanted if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    pictures = ("image_grid_thw", "image_grid_hw", "image_merge_sizes")
    known = {name: value for name, value in offered.items() if made.grids or name not in pictures}
    return demanded | {one.name: known[one.name] for one in wanted if one.name in known}


def build(config: Any) -> Any:
    """The model with random weights, always the same: none that scale nothing, and answers that vary."""
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        if fit.left_to_code(model, config.get_text_config(decoder=True)):
            return build(config)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # a norm that scales nothing commutes with a rotation, and would hide their order
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "embed" not in name:
                weight.mul_(4)
    if (generation := getattr(model, "generation_config", None)) is not None:
        generation.eos_token_id = None  # never stops early
        generation.pad_token_id = 0
    return model
