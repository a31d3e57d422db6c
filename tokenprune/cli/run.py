"""Commands that run a model: answer a question, find the Entropy Collapse Layer, and the demo."""

from __future__ import annotations

import inspect
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import track

from ..errors import TokenpruneError, UnknownNameError
from ..files import write
from . import tables
from .catalog import BudgetOption, OverridesArgument

if TYPE_CHECKING:
    from PIL import Image

    from ..api import Pruning
    from ..interfaces import Calibration
    from ..loading import Loaded
    from ..overlay import Shown
    from ..recipe import Recipe
    from ..values import Budget

DTYPES = ("auto", "float32", "bfloat16", "float16")

ModelArgument = Annotated[str, typer.Argument(help="A hub id, a local folder, or pico (the bundled model).")]
AttnOption = Annotated[str | None, typer.Option("--attn", help="Attention implementation, e.g. flash_attention_2.")]
DtypeOption = Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")]
DeviceOption = Annotated[str | None, typer.Option(help="Such as cuda or cpu; the GPU if there is one.")]


def _dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise typer.BadParameter(f"expected one of {', '.join(DTYPES)}, got {dtype}", param_hint="--dtype")
    return dtype


def chosen(recipe: str | None, overrides: list[str] | None, budget: str | None) -> tuple[Recipe | None, Budget | None]:
    """What options ask for; settings and budgets without a recipe are bad usage."""
    if overrides and recipe is None:
        raise typer.BadParameter(f"settings {overrides} need a recipe: add -r NAME", param_hint="OVERRIDES")
    if budget is not None and recipe is None:
        raise typer.BadParameter(f"a budget of {budget} needs a recipe to rescale: add -r NAME", param_hint="--budget")
    from ..budget import read
    from ..recipe import load

    built = load(recipe, *(overrides or [])) if recipe else None
    return built, read(budget) if budget is not None else None


def generate(
    model: ModelArgument,
    overrides: OverridesArgument = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = ...,  # type: ignore[assignment]
    image: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A picture; repeatable.")
    ] = None,
    video: Annotated[
        list[Path] | None, typer.Option(exists=True, help="A video, GIF or folder of frames; repeatable.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="A recipe; without it nothing is pruned.")
    ] = None,
    budget: BudgetOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from each video.")] = 8,
    overlay: Annotated[
        Path | None, typer.Option(help="Write a PNG of what survived of the first picture or video.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML file: what was kept and what it cost, overlays, scores.")
    ] = None,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Answer a question about pictures or videos; with a recipe, pruned, and say what was kept."""
    built, wanted = chosen(recipe, overrides, budget)
    if overlay is not None and not (recipe and (image or video)):
        raise typer.BadParameter("an overlay needs a recipe and a picture or video", param_hint="--overlay")
    if report is not None and not recipe:
        raise typer.BadParameter("a report needs a recipe: add -r NAME", param_hint="--report")
    from ..api import prune
    from ..loading import load_model
    from ..media import read_image, read_video, save

    images = [read_image(path) for path in image or []]
    videos = [read_video(path, frames) for path in video or []]
    loaded = load_model(model, attn, _dtype(dtype), device)
    inputs = loaded.inputs(prompt, images, videos)
    if built is None:
        print(loaded.answer(inputs, max_new_tokens))
        return
    with prune(loaded.model, built, budget=wanted, processor=loaded.processor) as pruning:
        print(loaded.answer(inputs, max_new_tokens))
    shown: list[Shown] = [*images, *videos]  # the order in which they are asked about
    print(pruning.report(), file=sys.stderr)
    if report is not None:
        pruning.report(report, shown, inputs)
    if overlay is not None:
        save(pruning.overlay(shown[0], inputs), overlay)


def calibrate(
    model: ModelArgument,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of the method such as eta=0.001.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="ecl, or the method whose recipe is fitted: fitprune, vtw, ...")] = "ecl",
    images: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A folder of pictures.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many pictures.")] = 32,
    prompt: Annotated[str, typer.Option(help="The question asked about each.")] = "Describe the picture.",
    output: Annotated[Path | None, typer.Option(help="Write YAML: as in configs/ecl/, or a recipe.")] = None,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Find a model's Entropy Collapse Layer on a folder of pictures and remember it for exactly these weights.

    With a method, fit its recipe to the model instead, and print it: `--output mine.yaml` makes it `-r mine.yaml`.
    """
    from ..analysis import ecl as layers
    from ..loading import load_model
    from ..media import pictures, read_image
    from ..pico import scenes
    from ..registry import registry

    fit = None if method == "ecl" else _calibration(method)
    given = _given(method, fit, settings or [])
    if images is None and model != "pico":
        raise typer.BadParameter("give a folder of pictures (only pico can draw its own)", param_hint="--images")
    if images is not None:
        shown = [read_image(path) for path in pictures(images)[:limit]]
    else:
        shown = [scene.picture for scene, _ in zip(scenes.held_out(0), range(limit), strict=False)]
    loaded = load_model(model, attn, _dtype(dtype), device)
    prompts = (
        loaded.inputs(prompt, [picture])
        for picture in track(shown, description="pictures", console=Console(stderr=True))
    )
    if fit is not None:
        try:
            text = yaml.safe_dump(fit(loaded.model, prompts, **given), sort_keys=False, width=100)
        except (ValueError, TypeError) as error:
            raise TokenpruneError(f"calibration {method!r}: {error}") from error
        print(text, end="")
        if output is not None:
            write(output, text)
        return
    adapter = registry().adapter(loaded.model.config)
    profiles = []
    for inputs in prompts:
        visual = partial(adapter.visual, loaded.model.config, inputs["input_ids"])
        decoder = adapter.decoder(adapter.base(loaded.model))
        profiles.append(layers.layer_entropies(adapter, decoder, visual, partial(loaded.model, **inputs)))
    means = [statistics.fmean(values) for values in zip(*profiles, strict=True)]
    layer = layers.collapse(means)
    rows = []
    for block, entropy in enumerate(means, start=1):
        drop = f"{entropy - means[block]:+.4f}" if block < len(means) else ""
        rows.append([f"{block} <- ECL" if block == layer else str(block), f"{entropy:.4f}", drop])
    tables.show(f"{len(shown)} pictures", ["block", "entropy (nats)", "drop to the next"], rows)
    path = layers.remember(loaded.model, adapter, means)
    where = (
        f"remembered in {path}" if path else "not remembered: the cache is not writable, or the weights are offloaded"
    )
    tables.say(f"Entropy Collapse Layer: {layer} of {len(means)} ({where})")
    if output is not None:
        entry = {"depth": len(means), "layer": layer, "models": [Path(model).name]}
        write(output, yaml.safe_dump({**entry, "source": f"tokenprune calibrate, {len(shown)} pictures"}))


def _calibration(method: str) -> Calibration:
    from ..registry import registry

    known = registry().entries["calibration"]
    if method not in known:
        raise UnknownNameError("calibration", method, ["ecl", *known])
    return known[method].thing


def _given(method: str, fit: Calibration | None, lines: list[str]) -> dict[str, Any]:
    """Settings of a calibration from `a=b` lines."""
    known = list(inspect.signature(fit).parameters)[2:] if fit is not None else []
    given = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or key not in known:
            raise typer.BadParameter(
                f"{line!r}: {method} has {', '.join(known) or 'no settings'}", param_hint="SETTINGS"
            )
        given[key] = yaml.safe_load(value)
    return given


def demo(
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your own picture.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", "-r")] = "entropyprune",
    budget: BudgetOption = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the picture, the overlay and the report; not with --web.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Which scene is drawn.")] = 0,
    model: Annotated[str, typer.Option(help="As in generate.")] = "pico",
    web: Annotated[bool, typer.Option("--web", help="A page to play with, instead (extra demo).")] = False,
    host: Annotated[str, typer.Option(help="Where the page listens; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="As above.")] = 7860,
) -> None:
    """One picture, a question of each kind: answers without and with pruning, what it cost, and what survived."""
    if web:
        _page(model, recipe, budget, image, seed, host, port)
        return
    from ..api import prune
    from ..budget import read
    from ..loading import load_model
    from ..media import read_image
    from ..pico import scenes
    from ..recipe import load

    built = load(recipe)
    wanted = read(budget) if budget is not None else None
    loaded = load_model(model)
    output.mkdir(parents=True, exist_ok=True)
    if image is None:
        scene = next(iter(scenes.held_out(seed)))
        picture, asked = scene.picture, {q.kind: (q.text, q.answer) for q in scene.questions}
        picture.save(output / "picture.png")
    else:
        picture = read_image(image)
        asked = {kind: (text, "") for kind, text in OPEN_QUESTIONS.items()}
    header = ["kind", "question", "truth", "pruned?", "answer", "right?", "kept by layer"]
    rows: list[list[str]] = []
    pruning = prune(loaded.model, built, budget=wanted, processor=loaded.processor)
    for kind, (question, truth) in asked.items():
        inputs = loaded.inputs(question, [picture])
        plain_ms, pruned_ms = interleaved(lambda i=inputs: _prefill(loaded, i), pruning)  # type: ignore[misc]
        plain = loaded.answer(inputs)
        with pruning:
            pruned = loaded.answer(inputs)
        report = pruning.report()
        kept = " ".join(f"{stage.where}:{stage.kept[0]}/{stage.total[0]}" for stage in report.stages) or "all"
        for name, answer, kv, ms, share, left in (
            ("no", plain, report.kv_mib.full, plain_ms, 1.0, "all"),
            (built.name, pruned, report.kv_mib.pruned, pruned_ms, report.flops_share, kept),
        ):
            right = "" if not truth else "yes" if answer == truth else "NO"
            row = (kind, question, truth) if name == "no" else ("", "", "")
            rows.append([*row, name, answer, right, left, f"{kv:.2f}", f"{ms:.1f}", f"{share:.0%}"])
    tables.show("", [*header, "KV MiB", "prefill ms", "FLOPs"], rows, words=("question", "answer", "kept by layer"))
    pruning.report(output / "report.html", [picture], inputs)
    tables.say(f"the last question's stages and scores: {output / 'report.html'}")
    if pruning.state is not None and pruning.state.views:
        both = side_by_side(picture, pruning.overlay(picture, inputs))
        both.save(output / "overlay.png")
        tables.say(f"what survived of its picture: {output / 'overlay.png'}")


def _page(model: str, recipe: str, budget: str | None, image: Path | None, seed: int, host: str, port: int) -> None:
    """Show the demo as a page until interrupted."""
    if budget is not None:
        raise typer.BadParameter("choose it on the page", param_hint="--budget")
    from .. import web as pages
    from ..loading import load_model
    from ..recipe import load

    pages.need()
    load(recipe)
    page = pages.build(load_model(model), recipe, image, seed)
    print(f"{pages.serve(page, host, port)} (Ctrl-C ends it)", flush=True)
    page.block_thread()


OPEN_QUESTIONS = {
    "exists": "is there a red circle?",
    "color": "what color is the square?",
    "count": "how many circles are there?",
    "digit": "what digit is blue?",
    "read": "read the digits",
}


def _prefill(loaded: Loaded, inputs: dict[str, Any]) -> float:
    """Milliseconds of one prefill, synchronised on a GPU."""
    import torch

    sync: Callable[[], object] = torch.cuda.synchronize if loaded.model.device.type == "cuda" else lambda: None
    with torch.inference_mode():
        sync()
        start = time.perf_counter()
        loaded.model(**inputs, logits_to_keep=1)
        sync()
    return 1000 * (time.perf_counter() - start)


def interleaved(run: Callable[[], float], pruning: Pruning, pairs: int = 9) -> tuple[float, float]:
    """Medians of `run` without and with pruning, taken in turn after one warm-up of each."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(pairs + 1):
        for pruned, found in times.items():
            with pruning if pruned else nullcontext():
                found.append(run())
    return statistics.median(times[False][1:]), statistics.median(times[True][1:])


def side_by_side(left: Image.Image, right: Image.Image, height: int = 384) -> Image.Image:
    """Two pictures of one height next to each other."""
    from PIL import Image

    parts = [
        p.convert("RGB").resize((p.width * height // p.height, height), Image.Resampling.NEAREST) for p in (left, right)
    ]
    joined = Image.new("RGB", (parts[0].width + parts[1].width + 16, height), "white")
    joined.paste(parts[0], (0, 0))
    joined.paste(parts[1], (parts[0].width + 16, 0))
    return joined
