"""Commands that run a model: answer a question, and find the Entropy Collapse Layer."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TokenpruneError, UnknownNameError
from ..outputs import check_output, write
from . import tables
from .catalog import BudgetOption, OverridesArgument

if TYPE_CHECKING:
    from ..amounts import Budget
    from ..parts.fact import Fact
    from ..recipe import Recipe
    from ..show.overlay import Shown

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
    from ..amounts import read
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
        Path | None, typer.Option(dir_okay=False, help="Write a PNG of what survived of the first picture or video.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write an HTML file: what was kept and what it cost, overlays, scores."),
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
    if not (image or video):
        if recipe:
            raise typer.BadParameter(
                "a recipe drops tokens of pictures and videos, and none is given: add --image FILE or --video FILE, or "
                "leave the recipe out",
                param_hint="--recipe",
            )
        print("no --image and no --video was given: the model gets the question alone", file=sys.stderr)
    from ..api import prune
    from ..lab.loading import load_model
    from ..lab.media import check_picture, read_image, read_video, save

    if overlay is not None:
        check_picture(overlay)
    if report is not None:
        check_output(report)
    images = [read_image(path) for path in image or []]
    videos = [read_video(path, frames) for path in video or []]
    loaded = load_model(model, attn, _dtype(dtype), device)
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
) -> None:
    """Find a model's Entropy Collapse Layer on a folder of pictures and remember it for exactly these weights.

    With a method, fit its recipe to the model instead, and print it: `--output mine.yaml` makes it `-r mine.yaml`.
    """
    import numpy as np
    import yaml

    from .. import ecl as layers
    from ..lab.loading import load_model
    from ..lab.media import pictures, read_image
    from ..lab.pico import scenes
    from ..lab.profile import stability
    from ..model.anatomy import Anatomy
    from ..parts.fact import Sample

    made_by = _fact(method)
    given = _given(method, made_by, settings or [])
    if images is None and model != "pico":
        raise typer.BadParameter("give a folder of pictures (only pico can draw its own)", param_hint="--images")
    if output is not None:
        check_output(output)
    if images is not None:
        shown = [read_image(path) for path in pictures(images)[:limit]]
    else:
        shown = [scene.picture for scene, _ in zip(scenes.held_out(0), range(limit), strict=False)]
    loaded = load_model(model, attn, _dtype(dtype), device)
    prompts = (loaded.inputs(prompt, [picture]) for picture in tables.follow(shown, "pictures"))
    anatomy = Anatomy.of(loaded.model)
    samples = (Sample.of(loaded.model, anatomy.adapter, inputs) for inputs in prompts)
    try:
        fact = made_by(**given)
        value = fact.measure(loaded.model, anatomy.adapter, samples)
    except (ValueError, TypeError) as error:
        raise TokenpruneError(f"calibration {method!r}: {error}") from error
    if (fitted := fact.recipe(value)) is not None:
        text = yaml.safe_dump(fitted, sort_keys=False, width=100)
        print(text, end="")
        if output is not None:
            write(output, text)
        return
    means, profiles, found = value.mean, value.samples, value.collapse
    rows = []
    for block, entropy in enumerate(means, start=1):
        drop = f"{entropy - means[block]:+.4f}" if block < len(means) else ""
        mark = f" <- {'ECL' if found.found else 'steepest'}" if block == found.layer else ""
        rows.append([f"{block}{mark}", f"{entropy:.4f}", drop])
    tables.show(f"{len(shown)} pictures", ["block", "entropy (nats)", "drop to the next"], rows)
    stable = stability(np.array(profiles), seed=0)["ecl"]
    tables.say(f"Entropy Collapse Layer: {found.tell(stable['drop_interval'])}; the schedule `ecl` prunes there")
    path = fact.remember(loaded.model, anatomy.adapter, value)
    shipped = layers.shipped(str(loaded.model.config._name_or_path), len(means))
    instead = "" if shipped is None else f"; for these weights it takes the place of the shipped layer {shipped}"
    tables.say(
        f"remembered in {path}{instead}"
        if path
        else "not remembered: the cache is not writable, or the weights are offloaded"
    )
    if output is not None:
        source = f"tokenprune calibrate, {len(shown)} pictures"
        write(output, yaml.safe_dump(found.entry(Path(model).name, source), sort_keys=False))


def _fact(method: str) -> type[Fact]:
    from ..registry import registry

    found = registry()
    if method not in found.entries["fact"] and method not in found.contested["fact"]:
        raise UnknownNameError("calibration", method, [*found.entries["fact"]])
    made_by: type[Fact] = found.get("fact", method)
    return made_by


def _given(method: str, made_by: type[Fact], lines: list[str]) -> dict[str, Any]:
    """Settings of a calibration from `a=b` lines."""
    import yaml

    known = [field.name for field in dataclasses.fields(made_by)]  # type: ignore[arg-type]
    given = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or key not in known:
            raise typer.BadParameter(
                f"{line!r}: {method} has {', '.join(known) or 'no settings'}", param_hint="SETTINGS"
            )
        given[key] = yaml.safe_load(value)
    return given
