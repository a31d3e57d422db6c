"""The page as Gradio's components, from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...recipe import presets, registered
from ...show.html import colour_bar
from ..loading import Loaded
from . import events
from .comparison import LETTERS
from .offer import Offer
from .server import need
from .settings import NO_PRESET, movable
from .widgets import Answer, Asking, Page, Settings


def build(loaded: Loaded, recipe: str = "entropyprune", image: Path | None = None, seed: int = 0) -> Any:
    """The page, a `gradio.Blocks`. All questions wait for the one model in one queue.

    Args:
        loaded: the model.
        recipe: chosen at first, a name, `name@preset` or path.
        image: shown at first instead of the first scene.
        seed: which scenes are offered.
    """
    gr = need()
    offer = Offer.of(loaded, recipe, image, seed)
    with gr.Blocks(title="tokenprune", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(f"# tokenprune\n{offer.about}", elem_id="about")
        truths = gr.State(offer.truths())
        # on a phone its columns dissolve: the answer stands between question and settings
        with gr.Row(elem_id="sides"):
            with gr.Column(scale=4, min_width=320):
                with gr.Column(elem_id="asking"):
                    asking = _asking(gr, offer)
                with gr.Column(elem_id="settings"):
                    settings = _settings(gr, offer)
            with gr.Column(scale=6, min_width=320):
                answer = _answer(gr)
        events.connect(gr, loaded, offer, Page(blocks, truths, asking, settings, answer))
    return blocks.queue(max_size=32)


def _asking(gr: Any, offer: Offer) -> Asking:
    examples = gr.Dataset(
        label="Examples", components=["image"], samples=[[scene.picture] for scene in offer.scenes],
        type="index", elem_id="examples",
    )  # fmt: skip
    with gr.Row(elem_id="pictures"):
        picture = gr.Image(
            offer.picture, label="Picture", type="filepath", image_mode=None, format="png", height=220,
            buttons=[], interactive=False, min_width=150, elem_id="picture",
        )  # fmt: skip
        own = gr.File(label="Your picture", file_types=["image"], height=220, min_width=150)
    asked = list(offer.truths())
    question = gr.Textbox(asked[0], label="Question", max_length=LETTERS, elem_id="question")
    texts = gr.Dataset(label="Try", components=[question], samples=[[text] for text in asked], elem_id="texts")
    button = gr.Button("Ask", variant="primary")
    return Asking(examples, picture, own, question, texts, button)


def _settings(gr: Any, offer: Offer) -> Settings:
    free = movable(offer.recipe) is not None
    with gr.Row():
        names = list(dict.fromkeys([*registered(), offer.base]))
        recipe = gr.Dropdown(names, value=offer.base, label="Recipe", min_width=150)
        known = [NO_PRESET, *presets(offer.base)]
        preset = gr.Dropdown(known, value=offer.preset, label="Preset", min_width=150)
    layer = gr.Slider(
        0, offer.depth - 1, 0, step=1, buttons=[], label="Layer", info="Decoder blocks that see every token.",
        interactive=free, elem_id="layer",
    )  # fmt: skip
    own_layer = gr.Checkbox(True, label="the recipe's own layer", interactive=free)
    budget = gr.Slider(
        1, 100, 100, step=1, buttons=[], label="Budget (%)", elem_id="budget",
        info="Visual tokens that a decoder block sees on average.",
    )  # fmt: skip
    own_budget = gr.Checkbox(True, label="the recipe's own budget")
    return Settings(recipe, preset, layer, own_layer, budget, own_budget)


def _answer(gr: Any) -> Answer:
    message = gr.HTML(visible=False, padding=False, elem_id="said")
    table = gr.HTML(padding=False, elem_id="answers")
    with gr.Column(elem_id="figures") as figures:
        legend = f'<div class="legend">What is left, and by which scores: {colour_bar("low", "high")}</div>'
        gr.HTML(legend, padding=False, elem_id="legend")
        overlays = gr.Gallery(
            label="What is left", show_label=False, format="png", columns=4, object_fit="contain",
            height="auto", buttons=[], interactive=False, elem_id="overlays",
        )  # fmt: skip
        curve = gr.Image(
            label="Entropy by layer", show_label=False, format="png", buttons=[], interactive=False,
            elem_id="entropy",
        )  # fmt: skip
        words = gr.Markdown()
    return Answer(message, table, figures, overlays, curve, words)
