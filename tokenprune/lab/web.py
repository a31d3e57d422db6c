"""The demo as a web page: `compare` and `table` are what it says, `build` lays it out, `serve` shows it.

Only the last two need Gradio.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import ecl
from ..amounts import Budget
from ..api import prune
from ..errors import MediaError, PromptError, TokenpruneError, install
from ..plan.cost import DecoderSize
from ..recipe import RecipeLike, load, presets, registered
from ..registry import registry
from ..show.html import COLOURS, SHORTEST, colour_bar
from ..show.report import StageReport
from . import plots
from . import profile as profiles
from .bench import UNPRUNED, Bench
from .loading import PICO, Loaded
from .media import read_image
from .pico import scenes

UPLOAD = "10mb"
LONGEST = 2048  # pixels of a picture's sides: larger ones are shrunk, so that a page stays quick
LETTERS = 2000  # of a question
SCENES = 5
ROUNDS = 3  # timed pairs, after one to warm up
NO_PRESET = "none"

STYLE = """
.compared { width: 100%; border-collapse: collapse }
#answers .compared :is(th, td) { padding: .35em .6em; text-align: left; vertical-align: top;
  border: 1px solid var(--border-color-primary) }
#answers .compared th { overflow-wrap: break-word; word-break: normal }
#answers .compared td { overflow-wrap: anywhere }
.compared caption { text-align: left; padding: 0 0 .4em; font-weight: 600; overflow-wrap: anywhere }
.compared .answer td { font-size: 1.25em; font-weight: 600 }
.message { white-space: pre-wrap; overflow-wrap: anywhere; padding: .7em 1em; border-radius: .4em;
  border: 1px solid var(--error-border-color); background: var(--error-background-fill);
  color: var(--error-text-color) }
:is(#answers, #said, #legend) .html-container { padding: 0 }
#overlays .grid-wrap { min-height: 0; max-height: none }
#overlays .grid-container { grid-template-columns: repeat(auto-fit, minmax(max(140px, 24%), 1fr)) }
.legend { display: flex; flex-wrap: wrap; gap: 0 .8em } .legend .bar { display: flex; align-items: center; gap: .5em }
.legend i { order: 1; width: 7em; height: .8em; border-radius: .2em; background: linear-gradient(90deg, COLOURS) }
.legend span:last-child { order: 2 }
.gradio-container { overflow: clip !important }
#said { position: sticky; top: .5em; bottom: .5em; z-index: 9 }
:is(#answers, #figures).stale { opacity: .65 } #answers.stale:has(table)::before { content: "The answer before:" }
.dark #entropy img { filter: invert(.9) hue-rotate(180deg) }
@media (max-width: 768px) {
  #sides { flex-flow: column nowrap } #sides > .column { display: contents } #sides > .column > * { order: 3 }
  #sides #asking { order: 1 } #sides :is(#said, #answers) { order: 2 } #sides #figures { order: 4 }
  :is(#examples, #texts) > .gallery { flex-wrap: nowrap; overflow-x: auto }
  :is(#examples, #texts) > .gallery > * { flex: none } #examples .container { width: 54px; height: 54px }
  #pictures > .block { height: 110px !important } :is(#picture label, #pictures .icon-wrap) { display: none }
  #pictures .upload-container { height: 110px !important }
  #pictures .upload-container .wrap { min-height: 0; padding-top: 2em; font-size: .8em; line-height: 1.5 }
}
""".replace("COLOURS", COLOURS)

KNOWN = (  # what the bundled model was trained on: scenes.py draws it
    f"It knows {', '.join(scenes.PLURAL.values())} and handwritten digits in {', '.join(scenes.COLORS)}, drawn as "
    "here, and these questions in just these words: on anything else it guesses."
)


@dataclass(frozen=True)
class Side:
    """One way to answer. `tokens` are visual ones, as a mean over the decoder blocks; KV is theirs."""

    name: str
    answer: str
    tokens: float
    kv_mib: float
    flops_share: float
    prefill_ms: float


@dataclass(frozen=True)
class Comparison:
    """One question about one picture, without and with pruning.

    Attributes:
        question: as asked.
        unknown: words of it that the tokenizer has no token for.
        visual: visual tokens of the prompt.
        sides: unpruned, pruned.
        stages: what was dropped where.
        figures: per stage what is left and the scores, each with its caption; the picture if nothing was dropped.
        entropy: entropy of the visual tokens by layer, the Entropy Collapse Layer marked.
        collapse: that layer in words.
    """

    question: str
    unknown: list[str]
    visual: int
    sides: tuple[Side, Side]
    stages: list[StageReport]
    figures: list[tuple[Image.Image, str]]
    entropy: Image.Image
    collapse: str

    @property
    def percent(self) -> int:
        """Visual tokens that a decoder block sees on average, of 100."""
        return round(100 * self.sides[1].tokens / self.visual)


def compare(
    loaded: Loaded,
    picture: Image.Image,
    question: str,
    recipe: RecipeLike,
    *overrides: str,
    budget: Budget | None = None,
) -> Comparison:
    """Answer a question about a picture without and with pruning. Raises what `prune` and a pruned prefill raise."""
    question = question.strip()
    if not 0 < len(question) <= LETTERS:
        raise PromptError(f"expected a question of 1 to {LETTERS} letters, got {len(question)}")
    pruning = prune(loaded.model, load(recipe, *overrides), budget=budget, processor=loaded.processor)
    inputs = loaded.inputs(question, [picture])
    with pruning:
        pruned = loaded.answer(inputs)
    report = pruning.report()
    one = Bench(loaded.model, inputs, new_tokens=2, processor=loaded.processor)
    pairs = [(one.run().prefill_ms, one.run(pruning).prefill_ms) for _ in range(ROUNDS + 1)][1:]
    before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
    name = recipe if isinstance(recipe, str) else load(recipe).name
    figures = []
    for stage in report.stages:
        for what in (f"{stage.kept[0]} left", "scores") if stage.vision_layer is None else (f"{stage.kept[0]} left",):
            drawn = pruning.overlay(picture, inputs, stage=stage.layer, scores=what == "scores")
            figures.append((_enlarged(drawn), f"{stage.where}: {what}"))
    figures = figures or [(_enlarged(picture), f"all {one.visual} tokens")]
    entropy, collapse = _entropy(loaded, inputs)
    sides = (
        Side(UNPRUNED, loaded.answer(inputs), one.visual, report.kv_mib.full, 1.0, before),
        Side(name, pruned, report.average[0], report.kv_mib.pruned, report.flops_share, after),
    )
    return Comparison(
        question, _unknown(loaded, question), one.visual, sides, report.stages, figures, entropy, collapse
    )


def _unknown(loaded: Loaded, question: str) -> list[str]:
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return []
    return [word for word in question.split() if unknown in tokenizer(word, add_special_tokens=False).input_ids]


@torch.inference_mode()
def _entropy(loaded: Loaded, inputs: Mapping[str, Any]) -> tuple[Image.Image, str]:
    """The figure of this prompt, and its collapse layer beside the model's in words."""
    adapter = registry().adapter(loaded.model.config)
    decoder = adapter.decoder(adapter.base(loaded.model))
    visual = partial(adapter.visual, loaded.model.config, inputs["input_ids"])
    prefill = partial(loaded.model, **inputs, logits_to_keep=1)
    found = profiles.summary([profiles.row(adapter, decoder, visual, prefill, layers=[])], seed=0)
    queries = found["states"]["queries"]
    known = ecl.known(loaded.model, adapter)
    alone = ecl.Collapse(queries["ecl"]["layer"], found["depth"], queries["ecl"]["drop"], queries["ecl"]["found"])
    layer = "has no layer of this model yet" if known is None else f"prunes this model at layer {known}"
    words = f"The schedule ecl {layer}. In this prompt alone: {alone.tell()}."
    figure = plots.entropy({**found, "states": {"queries": queries}}, "entropy of the visual tokens", known, (5, 3.2))
    return Image.open(io.BytesIO(figure)), words


def _enlarged(picture: Image.Image) -> Image.Image:
    """A small picture with its pixels as squares, as in reports."""
    times = -(-SHORTEST // min(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def table(made: Comparison, truth: str = "") -> str:
    """HTML: both ways side by side, and the stages in words."""
    rows = {
        "answer": [escape(side.answer) or "(nothing)" for side in made.sides],
        "visual tokens": [f"{side.tokens:.4g} of {made.visual}" for side in made.sides],
        "their KV cache": [f"{side.kv_mib:.2f} MiB" for side in made.sides],
        "prefill FLOPs": [f"{side.flops_share:.0%}" for side in made.sides],
        "prefill time": [f"{side.prefill_ms:.1f} ms" for side in made.sides],
    }
    head = "".join(f"<th>{escape(side.name)}</th>" for side in made.sides)
    body = "".join(
        f'<tr class="{name.split()[-1]}"><th>{name}</th><td>{left}</td><td>{right}</td></tr>'
        for name, (left, right) in rows.items()
    )
    stages = [f"after {s.where}, {escape(s.scorer)} keeps {s.kept[0]} of {s.total[0]}" for s in made.stages]
    words = "; ".join(stages) or "Nothing was dropped: the recipe keeps as many tokens as there are"
    known = f"<p>The right answer is <b>{escape(truth)}</b>.</p>" if truth else ""
    blind = ", ".join(f"<b>{escape(word)}</b>" for word in made.unknown)
    known += f"<p>The model does not know the words {blind}: its answer is a guess.</p>" if blind else ""
    return (
        f'<table class="compared"><caption>{escape(made.question)}</caption><tr><th></th>{head}</tr>{body}</table>'
        f"{known}<p>{words[0].upper()}{words[1:]}.</p>"
    )


def upload(path: Path) -> Image.Image:
    """An uploaded picture, at most LONGEST pixels a side. Raises MediaError, which names the file only."""
    try:
        picture = read_image(path)
    except MediaError as error:
        raise MediaError(str(error).replace(f"{path.parent}/", "")) from error
    picture.thumbnail((LONGEST, LONGEST))
    return picture


def movable(recipe: RecipeLike) -> int | None:
    """Which pass a layer is set for: the first one in the decoder, if it prunes at one layer; else None."""
    built = load(recipe)
    first = len(built.vision_passes)
    schedule = built.passes[first].schedule if built.decoder_passes else None
    return first if schedule is not None and (schedule.needs or hasattr(schedule, "layer")) else None


def need() -> Any:
    """Gradio, or a TokenpruneError that says how to get it."""
    try:
        import gradio
    except ImportError as error:
        raise TokenpruneError(f"the web page needs Gradio ({error}): {install('demo')}") from error
    plots.need()
    return gradio


def build(loaded: Loaded, recipe: str = "entropyprune", image: Path | None = None, seed: int = 0) -> Any:
    """The page, a `gradio.Blocks`. All questions wait for the one model in one queue.

    Args:
        loaded: the model.
        recipe: chosen at first, a name, `name@preset` or path.
        image: shown at first instead of the first scene.
        seed: which scenes are offered.
    """
    gr = need()
    base, _, preset = recipe.rpartition("@")
    if not (base in registered() or Path(base).is_file()):
        base, preset = recipe, ""
    drawn = list(islice(scenes.held_out(seed), SCENES))
    shown = drawn[0].picture if image is None else upload(image)
    asked = {question.text: question.answer for question in drawn[0].questions}
    depth = DecoderSize.of(loaded.model.config).depth
    name = Path(str(loaded.model.config._name_or_path)).name

    def ask(
        path: str | None,
        question: str,
        truths: dict[str, str],
        recipe: str,
        preset: str,
        own_layer: bool,
        layer: float,
        own_budget: bool,
        percent: float,
    ) -> dict[Any, Any]:
        full = recipe if preset == NO_PRESET else f"{recipe}@{preset}"
        try:
            if path is None:
                raise MediaError("there is no picture: choose an example, or drop one of yours")
            lines = [] if own_layer else [f"prune.{movable(full)}.schedule.layer={layer:.0f}"]
            budget = None if own_budget else f"{percent:.0f}%"  # errors speak of percent as well, as the slider does
            made = compare(loaded, upload(Path(path)), question or "", full, *lines, budget=budget)
        except TokenpruneError as error:
            return fault(error)
        return {
            said: gr.update(visible=False),
            figures: gr.update(elem_classes=[]),
            answers: gr.update(value=table(made, truths.get(question.strip(), "")), elem_classes=[]),
            overlays: made.figures,
            curve: made.entropy,
            words: made.collapse,
            layers: next((stage.layer for stage in made.stages if own_layer and stage.vision_layer is None), layer),
            budgets: made.percent if own_budget else percent,
        }

    def fault(error: TokenpruneError) -> dict[Any, Any]:
        """What stands on the page stays, but it answers something else."""
        text = f'<div class="message" role="alert">{escape(str(error))}</div>'
        stale = gr.update(elem_classes=["stale"])
        return {said: gr.update(value=text, visible=True), answers: stale, figures: stale}

    def drop(path: str, question: str, _: dict[str, str], *settings: Any) -> dict[Any, Any]:
        """A picture of the visitor's own, asked about at once. Nobody knows the right answers."""
        try:
            shown = upload(Path(path))
        except MediaError as error:
            return {own: None, **fault(error)}
        return {own: None, picture: shown, truths: {}, **ask(path, question, {}, *settings)}

    def pick(index: int) -> list[Any]:
        texts = {question.text: question.answer for question in drawn[index].questions}
        return [drawn[index].picture, next(iter(texts)), texts, gr.update(samples=[[text] for text in texts])]

    def follow(recipe: str) -> list[Any]:
        free = gr.update(interactive=movable(recipe) is not None)
        return [gr.update(choices=[NO_PRESET, *presets(recipe)], value=NO_PRESET), free, free]

    with gr.Blocks(title="tokenprune", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        about = f"The same question to **{name}**, with all visual tokens and with some dropped."
        gr.Markdown(f"# tokenprune\n{about}" + (f" {KNOWN}" if name == PICO.name else ""), elem_id="about")
        truths = gr.State(asked)
        with gr.Row(
            elem_id="sides"
        ):  # on a phone its columns dissolve: the answer stands between question and settings
            with gr.Column(scale=4, min_width=320):
                with gr.Column(elem_id="asking"):
                    examples = gr.Dataset(
                        label="Examples", components=["image"], samples=[[scene.picture] for scene in drawn],
                        type="index", elem_id="examples",
                    )  # fmt: skip
                    with gr.Row(elem_id="pictures"):
                        picture = gr.Image(
                            shown, label="Picture", type="filepath", image_mode=None, format="png", height=220,
                            buttons=[], interactive=False, min_width=150, elem_id="picture",
                        )  # fmt: skip
                        own = gr.File(label="Your picture", file_types=["image"], height=220, min_width=150)
                    question = gr.Textbox(next(iter(asked)), label="Question", max_length=LETTERS, elem_id="question")
                    texts = gr.Dataset(
                        label="Try", components=[question], samples=[[text] for text in asked], elem_id="texts"
                    )
                    button = gr.Button("Ask", variant="primary")
                with gr.Column(elem_id="settings"):
                    with gr.Row():
                        recipes = gr.Dropdown(
                            list(dict.fromkeys([*registered(), base])), value=base, label="Recipe", min_width=150
                        )
                        chosen = gr.Dropdown(
                            [NO_PRESET, *presets(base)], value=preset or NO_PRESET, label="Preset", min_width=150
                        )
                    layers = gr.Slider(
                        0, depth - 1, 0, step=1, buttons=[], label="Layer", info="Decoder blocks that see every token.",
                        interactive=movable(recipe) is not None, elem_id="layer",
                    )  # fmt: skip
                    own_layer = gr.Checkbox(
                        True, label="the recipe's own layer", interactive=movable(recipe) is not None
                    )
                    budgets = gr.Slider(
                        1, 100, 100, step=1, buttons=[], label="Budget (%)", elem_id="budget",
                        info="Visual tokens that a decoder block sees on average.",
                    )  # fmt: skip
                    own_budget = gr.Checkbox(True, label="the recipe's own budget")
            with gr.Column(scale=6, min_width=320):
                said = gr.HTML(visible=False, padding=False, elem_id="said")
                answers = gr.HTML(padding=False, elem_id="answers")
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
        run: dict[str, Any] = {
            "fn": ask,
            "inputs": [picture, question, truths, recipes, chosen, own_layer, layers, own_budget, budgets],
            "outputs": [said, answers, figures, overlays, curve, words, layers, budgets],
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "trigger_mode": "always_last",
            "show_progress_on": [answers, overlays, curve],  # and not on the sliders, which may be moved again
        }
        gr.on([page.load, button.click, question.submit, own_layer.input, own_budget.input], **run)
        for slider, own_choice in ((layers, own_layer), (budgets, own_budget)):
            moved = {"fn": None, "outputs": own_choice, "js": "() => false"}
            slider.input(**moved)  # by keys, which release nothing: the button asks
            slider.release(**moved).then(**run)
        reset = {"fn": lambda: (True, True), "outputs": [own_layer, own_budget], "queue": False}
        recipes.input(follow, recipes, [chosen, layers, own_layer], queue=False).then(**reset).then(**run)
        chosen.input(**reset).then(**run)
        texts.click(lambda sample: sample[0], texts, question, queue=False).then(**run)
        examples.click(pick, examples, [picture, question, truths, texts], queue=False).then(**run)
        dropped = {"inputs": [own, *run["inputs"][1:]], "outputs": [own, picture, truths, *run["outputs"]]}
        own.upload(**{**run, **dropped, "fn": drop})
    return page.queue(max_size=32)


def serve(page: Any, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Show the page in a thread; its address. Nothing is shared, reported or fetched from elsewhere.

    Raises TokenpruneError if the port cannot be had.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inline=False,
            max_file_size=UPLOAD,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            css=STYLE,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise TokenpruneError(f"cannot listen on {host}:{port}: {error} Give another --host or --port") from error
    return str(address)
