"""The public face: `prune` (a block) and `attach` (until removed) are the same object."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from PIL import Image

from . import overlay as pictures
from .budget import checked
from .engine import Pruner
from .errors import TokenpruneError, UnsupportedModelError
from .flops import Geometry
from .prompt import PromptState
from .recipe import RecipeLike, load
from .registry import registry
from .report import Report, report
from .values import Budget


class Pruning:
    """A recipe on a model. As a context manager it prunes inside the block; see `attach` for the lasting form."""

    def __init__(
        self, model: Any, recipe: RecipeLike, *overrides: str, budget: Budget | None = None, processor: Any = None
    ) -> None:
        if not hasattr(model, "config"):
            raise UnsupportedModelError(
                f"expected a transformers model, which has a config, got {type(model).__name__}: pass the model inside "
                "it, accelerator.unwrap_model(model) say; the wrapper's forward is then pruned too"
            )
        budget = None if budget is None else checked(budget)
        self._pruner = Pruner(model, load(recipe, *overrides), registry().adapter(model.config), budget, processor)

    def __enter__(self) -> Pruning:
        self._pruner.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook out of the model. Doing it twice is fine."""
        self._pruner.remove()

    @property
    def state(self) -> PromptState | None:
        """The last prompt batch: `.views` (`{layer: View}`), `.visual`; None before the first one with pictures."""
        return self._pruner.state

    def report(self) -> Report:
        """Per stage what each prompt kept, the KV cache of the visual tokens and the FLOPs left."""
        dtype = next(self._pruner.base.parameters()).dtype
        return report(self.state, Geometry.of(self._pruner.config), dtype.itemsize)

    def overlay(self, image: Image.Image, prompt: int = 0, picture: int = 0) -> Image.Image:
        """The picture with the dropped patches darkened, after the last stage.

        Args:
            image: the picture as given to the processor; the part its centre crop hides is cut away.
            prompt: row of the batch.
            picture: which picture of that prompt.

        Raises:
            TokenpruneError: nothing was pruned yet, or this family's grid is not known.
        """
        state = self.state
        if state is None or not state.views:
            raise TokenpruneError("nothing was pruned yet: run the model inside the block first")
        boxes = self._pruner.adapter.boxes(self._pruner.config, state.counts[prompt])
        if boxes is None:
            family = self._pruner.config.model_type
            raise TokenpruneError(f"where the visual tokens of {family} lie in a picture is not known yet")
        view = state.views[max(state.views)]
        stays = torch.zeros_like(state.visual[prompt])
        stays[view.index[prompt][view.valid[prompt]]] = True
        mine = boxes[:, 0] == picture
        kept = stays[state.visual[prompt]].cpu()[mine].tolist()
        return pictures.overlay(pictures.centre_square(image), boxes[mine, 1:].tolist(), kept)


def prune(
    model: Any, recipe: RecipeLike, *overrides: str, budget: Budget | None = None, processor: Any = None
) -> Pruning:
    """Prune visual tokens inside a `with` block.

    Args:
        model: a stock transformers model of a supported family.
        recipe: a name (`"entropyprune"`, `"entropyprune@128"`), a YAML path, a mapping, or a Recipe.
        overrides: dotlist lines such as `"prune.0.schedule.average=128"`.
        budget: scales all keeps of the recipe by one factor, prompt by prompt, so that a prompt's visual tokens, as a
            mean over the decoder blocks, are this many (192) or this share of them (`1/3`, `"1/3"`).
        processor: the model's processor or tokenizer, for the few scorers that read the question as text.

    Raises:
        RecipeError, UnknownNameError: the recipe cannot be built.
        BudgetError: the budget means nothing; at a prefill: this recipe cannot meet it.
        UnsupportedModelError: no adapter for this model.
        AlreadyPrunedError, LayerError: on entering the block.
    """
    return Pruning(model, recipe, *overrides, budget=budget, processor=processor)


def attach(
    model: Any, recipe: RecipeLike, *overrides: str, budget: Budget | None = None, processor: Any = None
) -> Pruning:
    """Prune from now on, until `.remove()` is called on the result. Arguments and errors as in `prune`."""
    return Pruning(model, recipe, *overrides, budget=budget, processor=processor).__enter__()
