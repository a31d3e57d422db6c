"""What happens on the page: questions, pictures of a visitor's own, settings that move."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...errors import MediaError, TokenpruneError
from ...recipe import presets
from ..loading import Loaded
from .comparison import compare
from .offer import Offer
from .settings import NO_PRESET, movable, upload
from .widgets import Page, Settings
from .words import table

Changes = dict[Any, Any]
"""New values by component; what is not named stays."""


@dataclass(frozen=True, eq=False)
class Handlers:
    """What the page does.

    Args:
        gr: Gradio.
        loaded: the model.
        offer: the scenes to choose from.
        page: its components.
    """

    gr: Any
    loaded: Loaded
    offer: Offer
    page: Page

    def ask(
        self,
        path: str | None,
        question: str,
        truths: dict[str, str],
        recipe: str,
        preset: str,
        own_layer: bool,
        layer: float,
        own_budget: bool,
        percent: float,
    ) -> Changes:
        """Answer a question both ways; the sliders go to what the recipe chose by itself."""
        full = recipe if preset == NO_PRESET else f"{recipe}@{preset}"
        try:
            if path is None:
                raise MediaError("there is no picture: choose an example, or drop one of yours")
            lines = [] if own_layer else [f"prune.{movable(full)}.schedule.layer={layer:.0f}"]
            budget = None if own_budget else f"{percent:.0f}%"  # errors speak of percent as well, as the slider does
            made = compare(self.loaded, upload(Path(path)), question or "", full, *lines, budget=budget)
        except TokenpruneError as error:
            return self.fault(error)
        answer, settings, first = self.page.answer, self.page.settings, layer
        if own_layer:
            first = next((stage.layer for stage in made.stages if stage.vision_layer is None), layer)
        return {
            answer.message: self.gr.update(visible=False),
            answer.figures: self.gr.update(elem_classes=[]),
            answer.table: self.gr.update(value=table(made, truths.get(question.strip(), "")), elem_classes=[]),
            answer.overlays: made.figures,
            answer.curve: made.entropy,
            answer.words: made.collapse,
            settings.layer: first,
            settings.budget: made.percent if own_budget else percent,
        }

    def fault(self, error: TokenpruneError) -> Changes:
        """What stands on the page stays, but it answers something else."""
        text = f'<div class="message" role="alert">{escape(str(error))}</div>'
        stale = self.gr.update(elem_classes=["stale"])
        answer = self.page.answer
        return {answer.message: self.gr.update(value=text, visible=True), answer.table: stale, answer.figures: stale}

    def drop(self, path: str, question: str, _: dict[str, str], *settings: Any) -> Changes:
        """A picture of the visitor's own, asked about at once. Nobody knows the right answers."""
        asking = self.page.asking
        try:
            shown = upload(Path(path))
        except MediaError as error:
            return {asking.own: None, **self.fault(error)}
        changes = self.ask(path, question, {}, *settings)
        return {asking.own: None, asking.picture: shown, self.page.truths: {}, **changes}

    def pick(self, index: int) -> list[Any]:
        """An example: its picture, its first question, the right answers, and its questions to try."""
        truths = self.offer.truths(index)
        tried = self.gr.update(samples=[[text] for text in truths])
        return [self.offer.scenes[index].picture, next(iter(truths)), truths, tried]

    def follow(self, recipe: str) -> list[Any]:
        """Another recipe: its presets, and whether its layer can be moved, for the slider and its box."""
        free = self.gr.update(interactive=movable(recipe) is not None)
        return [self.gr.update(choices=[NO_PRESET, *presets(recipe)], value=NO_PRESET), free, free]


def connect(gr: Any, loaded: Loaded, offer: Offer, page: Page) -> None:
    """Tell Gradio, inside of its blocks, what happens when."""
    do = Handlers(gr, loaded, offer, page)
    asking, settings, answer = page.asking, page.settings, page.answer
    shown = [answer.message, answer.table, answer.figures, answer.overlays, answer.curve, answer.words]
    chosen = [settings.recipe, settings.preset, settings.own_layer, settings.layer]
    run: dict[str, Any] = {
        "fn": do.ask,
        "inputs": [asking.picture, asking.question, page.truths, *chosen, settings.own_budget, settings.budget],
        "outputs": [*shown, settings.layer, settings.budget],
        "concurrency_limit": 1,
        "concurrency_id": "model",
        "trigger_mode": "always_last",
        # and not on the sliders, which may be moved again
        "show_progress_on": [answer.table, answer.overlays, answer.curve],
    }
    asked = [page.blocks.load, asking.button.click, asking.question.submit]
    gr.on([*asked, settings.own_layer.input, settings.own_budget.input], **run)
    _connect_settings(do, settings, run)
    asking.texts.click(lambda sample: sample[0], asking.texts, asking.question, queue=False).then(**run)
    picked = [asking.picture, asking.question, page.truths, asking.texts]
    asking.examples.click(do.pick, asking.examples, picked, queue=False).then(**run)
    dropped = {
        "inputs": [asking.own, *run["inputs"][1:]],
        "outputs": [asking.own, asking.picture, page.truths, *run["outputs"]],
    }
    asking.own.upload(**{**run, **dropped, "fn": do.drop})


def _connect_settings(do: Handlers, settings: Settings, run: dict[str, Any]) -> None:
    """A slider that moves takes the recipe's own choice away; another recipe or preset brings it back."""
    for slider, own_choice in ((settings.layer, settings.own_layer), (settings.budget, settings.own_budget)):
        moved = {"fn": None, "outputs": own_choice, "js": "() => false"}
        slider.input(**moved)  # by keys, which release nothing: the button asks
        slider.release(**moved).then(**run)
    own = [settings.own_layer, settings.own_budget]
    reset = {"fn": lambda: (True, True), "outputs": own, "queue": False}
    followed = [settings.preset, settings.layer, settings.own_layer]
    settings.recipe.input(do.follow, settings.recipe, followed, queue=False).then(**reset).then(**run)
    settings.preset.input(**reset).then(**run)
