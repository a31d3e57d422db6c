"""Commands that run a model: answer a question, and find the Entropy Collapse Layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..outputs import check_output, write
from . import tables
from .options import (
    AttnOption,
    BudgetOption,
    DeviceOption,
    DtypeOption,
    FramesOption,
    ModelArgument,
    OverridesArgument,
    RecipeOption,
    TrustOption,
    load_model,
    read_recipe,
)

if TYPE_CHECKING:
    from ..lab.calibrate import Calibrated
    from ..show.overlay import Shown


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
    recipe: RecipeOption = None,
    budget: BudgetOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    frames: FramesOption = 8,
    overlay: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a PNG of what survived of the first picture or video.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write an HTML file: what was kept and what it cost, overlays, scores."),
    ] = None,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    trust_family: TrustOption = False,
) -> None:
    """Answer a question about pictures or videos; with a recipe, pruned, and say what was kept."""
    built, wanted = read_recipe(recipe, overrides, budget)
    _check_media(recipe, bool(image or video), overlay, report)
    from ..api import prune
    from ..lab.media import check_picture, read_image, read_video, save

    if overlay is not None:
        check_picture(overlay)
    if report is not None:
        check_output(report)
    images = [read_image(path) for path in image or []]
    videos = [read_video(path, frames) for path in video or []]
    loaded = load_model(model, attn, dtype, device, trust_family)
    inputs = loaded.inputs(prompt, images, videos)
    if built is None:
        print(loaded.answer(inputs, max_new_tokens))
        return
    with prune(loaded.model, built, budget=wanted, processor=loaded.processor) as pruning:
        print(answer := loaded.answer(inputs, max_new_tokens))
    shown: list[Shown] = [*images, *videos]  # the order in which they are asked about
    print(pruning.report(), file=sys.stderr)
    if pruning.state is not None and not pruning.state.stages:
        count = pruning.state.counts[0]
        print(f"nothing was dropped: {built.name} keeps all {count} visual tokens of this prompt", file=sys.stderr)
    if report is not None:
        pruning.report(report, shown, inputs, question=prompt, answer=answer)
    if overlay is not None:
        save(pruning.overlay(shown[0], inputs), overlay)


def _check_media(recipe: str | None, media: bool, overlay: Path | None, report: Path | None) -> None:
    """Refuse what makes no sense without a recipe, or without a picture or video."""
    if overlay is not None and not (recipe and media):
        raise typer.BadParameter("an overlay needs a recipe and a picture or video", param_hint="--overlay")
    if report is not None and not recipe:
        raise typer.BadParameter("a report needs a recipe: add -r NAME", param_hint="--report")
    if media:
        return
    if recipe:
        raise typer.BadParameter(
            "a recipe drops tokens of pictures and videos, and none is given: add --image FILE or --video FILE, or "
            "leave the recipe out",
            param_hint="--recipe",
        )
    print("no --image and no --video was given: the model gets the question alone", file=sys.stderr)


def calibrate(
    model: ModelArgument,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of the method such as eta=0.001.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="ecl, or the method whose recipe is fitted: fitprune, vtw, ...")] = "ecl",
    images: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A folder of pictures.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many pictures.")] = 32,
    prompt: Annotated[str, typer.Option(help="The question asked about each.")] = "Describe the picture.",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write YAML: as in configs/ecl/, or a recipe.")
    ] = None,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    trust_family: TrustOption = False,
) -> None:
    """Find a model's Entropy Collapse Layer on a folder of pictures and remember it for exactly these weights.

    With a method, fit its recipe to the model instead, and print it: `--output mine.yaml` makes it `-r mine.yaml`.
    """
    from ..ecl import Curves
    from ..lab import calibrate as calibrations

    made_by = calibrations.method(method)
    given = _read_settings(method, calibrations.settings(made_by), settings or [])
    if images is None and model != "pico":
        raise typer.BadParameter("give a folder of pictures (only pico can draw its own)", param_hint="--images")
    if output is not None:
        check_output(output)
    shown = calibrations.choose(images, limit)
    loaded = load_model(model, attn, dtype, device, trust_family)
    prompts = (loaded.inputs(prompt, [picture]) for picture in tables.follow(shown, "pictures"))
    fact, value = calibrations.measured(method, made_by, loaded, prompts, given)
    if (text := calibrations.fitted(fact, value)) is not None:
        print(text, end="")
    elif isinstance(value, Curves):
        _print_layer(found := calibrations.remembered(loaded, fact, value), len(shown))
        text = found.as_yaml(Path(model).name, f"tokenprune calibrate, {len(shown)} pictures")
    else:
        text = f"{method}: {fact.tell(value)}\n"
        tables.say(text.strip())
        tables.say(calibrations.keep(loaded, fact, value))
    if output is not None:
        write(output, text)


def _read_settings(method: str, known: list[str], lines: list[str]) -> dict[str, Any]:
    """Settings of a calibration from `a=b` lines."""
    import yaml

    given = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or key not in known:
            raise typer.BadParameter(
                f"{line!r}: {method} has {', '.join(known) or 'no settings'}", param_hint="SETTINGS"
            )
        given[key] = yaml.safe_load(value)
    return given


def _print_layer(found: Calibrated, pictures: int) -> None:
    """The entropy of every block, the layer, and where it is remembered."""
    rows, means = [], found.entropies
    for block, entropy in enumerate(means, start=1):
        drop = f"{entropy - means[block]:+.4f}" if block < len(means) else ""
        mark = f" <- {'ECL' if found.collapse.found else 'steepest'}" if block == found.collapse.layer else ""
        rows.append([f"{block}{mark}", f"{entropy:.4f}", drop])
    tables.show(f"{pictures} pictures", ["block", "entropy (nats)", "drop to the next"], rows)
    tables.say(f"Entropy Collapse Layer: {found.collapse.tell(found.interval)}; the schedule `ecl` prunes there")
    if not found.remembered:
        tables.say("not remembered: the cache is not writable, or the weights are offloaded")
        return
    shipped = f"; for these weights it takes the place of the shipped layer {found.shipped}"
    tables.say(f"remembered in {found.remembered}{'' if found.shipped is None else shipped}")
