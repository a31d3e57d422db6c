"""The public face: `prune` (a block) and `attach` (until removed) are the same object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image

from . import outputs
from .amounts import Budget, checked
from .errors import TokenpruneError, UnsupportedModelError
from .plan.cost import DecoderSize
from .pruner import Pruner
from .recipe import RecipeLike, load
from .registry import registry
from .show import html as page
from .show import overlay as drawing
from .show.report import Report, report
from .state.prompt import Prompt
from .version import __version__

NOTHING = "nothing was dropped yet: run the model on a picture inside the block first, with a recipe that drops tokens"


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
    def state(self) -> Prompt | None:
        """The last prompt batch: `.views` (`{layer: View}`), `.visual`; None before the first one with pictures."""
        return self._pruner.state

    def report(
        self,
        html: str | Path | None = None,
        pictures: Sequence[drawing.Shown] = (),
        inputs: Mapping[str, Any] | None = None,
        *,
        processor: Any = None,
        prompt: int = 0,
        question: str | None = None,
        answer: str | None = None,
    ) -> Report:
        """Per stage what each prompt kept, the KV cache of the visual tokens and the FLOPs left.

        Args:
            html: also write all that, with overlays and scores of every stage, into this one file.
            pictures: pictures and videos of the prompt to draw, in its order, as in `overlay`; may be fewer.
            inputs: as in `overlay`.
            processor: as in `overlay`.
            prompt: as in `overlay`.
            question: what was asked, for the file; by default the whole text of the prompt, if there is a processor
                that can read it.
            answer: what the model said, for the file.
        """
        dtype = next(self._pruner.anatomy.base.parameters()).dtype
        made = report(self.state, DecoderSize.of(self._pruner.anatomy.config), dtype.itemsize)
        if html is not None:
            figures = [
                page.Figure("as shown" if len(pictures) == 1 else f"picture {number}", drawing.original(shown))
                for number, shown in enumerate(pictures)
            ]
            for at, stage in enumerate(made.stages):
                for number, shown in enumerate(pictures):
                    drawn = partial(
                        self.overlay, shown, inputs, processor=processor, prompt=prompt, picture=number,
                        stage=stage.layer,
                    )  # fmt: skip
                    name = "" if len(pictures) == 1 else f"picture {number}: "
                    figures.append(page.Figure(f"{name}kept (dropped: dark)", drawn(), at))
                    if stage.vision_layer is None:
                        scale = drawing.span(self.state.scores[stage.layer][prompt])  # type: ignore[union-attr]
                        figures.append(page.Figure(f"{name}scores", drawn(scores=True), at, scale))
            text = self._text(processor, prompt) if question is None else question
            asked = {"Prompt" if question is None else "Question": text, "Answer": answer}
            told = {name: each for name, each in asked.items() if each is not None}
            title = f"{self._pruner.recipe.name} on {self._pruner.anatomy.config.model_type}"
            outputs.write(Path(html), page.render(title, made, figures, told, self._made_by()))
        return made

    def _text(self, processor: Any, prompt: int) -> str | None:
        """A prompt without its visual tokens, as text, or None if nothing here can read it."""
        processor = self._pruner.processor if processor is None else processor
        reader = getattr(processor, "tokenizer", processor)
        state = self.state
        if state is None or not hasattr(reader, "decode"):
            return None
        _one_of("prompt", prompt, range(len(state.ids)))
        columns = state.full_view.index[prompt][state.full_view.valid[prompt]].to(state.ids.device)
        columns = columns[columns < state.ids.shape[1] - state.drafts]
        ids = state.ids[prompt][columns][~state.visual[prompt][columns]]
        if bool((ids < 0).any()):  # embeddings alone were given
            return None
        return str(reader.decode(ids.tolist(), skip_special_tokens=True)).strip()

    def _made_by(self) -> dict[str, str]:
        """Versions, and the model by its last name: a local path is nobody else's business."""
        pruner = self._pruner
        weight = next(pruner.anatomy.base.parameters())
        name = Path(str(getattr(pruner.anatomy.config, "_name_or_path", ""))).name or "unnamed"
        where = (
            f"({pruner.anatomy.config.model_type}, {str(weight.dtype).removeprefix('torch.')} on {weight.device.type})"
        )
        versions = {"tokenprune": __version__, "torch": torch.__version__, "transformers": version("transformers")}
        return {"model": f"{name} {where}", **versions}

    def overlay(
        self,
        shown: drawing.Shown,
        inputs: Mapping[str, Any] | None = None,
        *,
        processor: Any = None,
        prompt: int = 0,
        picture: int = 0,
        stage: int | None = None,
        scores: bool = False,
    ) -> Image.Image:
        """The picture with the dropped patches darkened; a video's frames, or LLaVA-NeXT's two grids, as a strip.

        What the model never saw (cut away by the processor) is grey.

        Args:
            shown: the picture as given to the processor, or the frames it took from a video.
            inputs: what the processor returned for this batch. Families whose grids vary need it.
            processor: needed where it crops or pads pictures that are not square (LLaVA-1.5, Video-LLaVA); by default
                that of `prune`.
            prompt: row of the batch.
            picture: which picture or video of that prompt, counted in its order.
            stage: after the stage at this layer, as the report has it; the last one by default.
            scores: colour the tokens by that stage's scores instead, from dark (lowest of the prompt) to bright.

        Raises:
            TokenpruneError: nothing was dropped yet, there is no such stage, prompt or picture, or something that tells
                where its tokens lie is missing.
        """
        state = self.state
        if state is None or not state.views:
            raise TokenpruneError(NOTHING)
        layer = _one_of("stage", max(state.views) if stage is None else stage, list(state.views))
        _one_of("prompt", prompt, range(len(state.ids)))
        processor = self._pruner.processor if processor is None else processor
        placed = partial(
            drawing.placed,
            self._pruner.anatomy.adapter,
            self._pruner.anatomy.config,
            state.ids,
            state.visual,
            inputs or {},
            prompt,
            processor,
        )
        places = placed()
        number = places[_one_of(f"picture of prompt {prompt}", picture, range(len(places)))].number
        place = placed((*[None] * number, drawing.size(shown)))[picture]  # only this one is there to be measured
        view = state.views[layer]
        if scores and layer not in state.scores:
            raise TokenpruneError("scores of stages inside the vision tower are not kept: leave scores out")
        heat = state.scores[layer][prompt].cpu() if scores else None
        if heat is None:
            drawn = torch.zeros(state.ids.shape[1], dtype=torch.bool)
            drawn[view.index[prompt][view.valid[prompt]].cpu()] = True
        else:
            drawn = ~heat.isnan()
        return drawing.draw(self._pruner.anatomy.adapter, processor, shown, place, drawn, heat)


def _one_of(what: str, number: int, known: Sequence[int]) -> int:
    if number not in known:
        raise TokenpruneError(f"there is no {what} {number}: expected one of {', '.join(map(str, known)) or 'none'}")
    return number


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
        processor: the model's processor, for overlays, or its tokenizer; few scorers read the question as text.

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
