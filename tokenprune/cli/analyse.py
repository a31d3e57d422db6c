"""Commands that look into a model: its entropy by layer, and where its visual tokens stop to tell anything."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import outputs
from ..errors import LayerError, MediaError
from ..lab import results
from . import tables
from .interrupt import RESUMES, interrupted
from .run import AttnOption, DeviceOption, DtypeOption, ModelArgument, _dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..api import Pruning
    from ..lab.loading import Loaded
    from ..parts.adapter import Adapter

OutputOption = Annotated[Path, typer.Option(file_okay=False, help="Folder of the results; a killed run goes on there.")]
LayersOption = Annotated[str | None, typer.Option(help="Such as 1,2,16.", show_default=False)]


@interrupted(RESUMES)
def profile(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="A folder of pictures, or pico (drawn scenes).")] = "pico",
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many pictures.")] = 64,
    seed: Annotated[int, typer.Option(help="Which pictures or scenes, and of the bootstrap.")] = 0,
    output: OutputOption = Path("profile"),
    ask: Annotated[str, typer.Option(help="The question; where it follows the picture it changes nothing.")] = (
        "Describe the picture."
    ),
    layers: LayersOption = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Passes inside the vision tower, to look at what they leave.")
    ] = None,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Entropy of visual tokens by layer, spectra of some `--layers`, and the collapse layer with its stability."""
    import yaml

    from .. import ecl
    from ..api import prune
    from ..lab import plots
    from ..lab import profile as profiles
    from ..lab.loading import load_model
    from ..lab.media import read_image
    from ..lab.pico import scenes
    from ..recipe import load
    from ..registry import registry

    shown = _pictures(data, limit, seed)
    if recipe is not None and load(recipe).decoder_passes:
        raise typer.BadParameter(
            f"recipe {recipe} drops tokens in the decoder, whose layers are to be measured: give one that prunes "
            "inside the vision tower alone",
            param_hint="--recipe",
        )
    outputs.check_output(output, folder=True)
    loaded = load_model(model, attn, _dtype(dtype), device)
    adapter = registry().adapter(loaded.model.config)
    decoder = adapter.decoder(adapter.base(loaded.model))
    depth = len(adapter.blocks(decoder))
    chosen = _layers(layers, 1, depth) or profiles.default_layers(depth)
    settings = {**_settings("profile", loaded, adapter), "data": data, "seed": seed, "ask": ask, "layers": chosen}
    settings |= {} if recipe is None else {"recipe": repr(load(recipe))}
    results.check_settings(output / "profile.json", settings)
    rows = results.Rows(output / "rows", settings)
    drawn = scenes.held_out(seed)
    for key, path in tables.follow(list(shown.items()), "prefills"):
        scene = next(drawn)
        if key not in rows:
            inputs = loaded.inputs(ask, [read_image(path) if path else scene.picture])
            with nullcontext() if recipe is None else prune(loaded.model, recipe) as pruning:
                visual = partial(_visual, adapter.visual(loaded.model.config, inputs["input_ids"]), pruning)
                rows.add(key, profiles.row(adapter, decoder, visual, partial(_prefill, loaded, inputs), chosen))
    found = profiles.summary((rows[key] for key in shown), seed)
    main = found["states"]["queries"]["ecl"]
    name = settings["model"]
    source = f"tokenprune profile, {found['prompts']} pictures of {Path(data).name}, seed {seed}"
    source += "" if recipe is None else f", after {recipe}"
    entry = ecl.Collapse(main["layer"], depth, main["drop"], main["found"]).entry(name, source)
    title = f"{name}, {found['prompts']} pictures of {Path(data).name}" + ("" if recipe is None else f", {recipe}")
    figures = {"entropy.png": partial(plots.entropy, found, title), "spectra.png": partial(plots.spectra, found, title)}
    lines = []
    for block in range(depth):
        cells = [f"{part['entropy'][block]:.4f}" for part in found["states"].values()]
        mark = f" <- {'ECL' if main['found'] else 'steepest'}" if block + 1 == main["layer"] else ""
        lines.append([f"{block + 1}{mark}", *cells])
    tables.show(title, ["block", *(f"{state} (nats)" for state in found["states"])], lines)
    for state, part in found["states"].items():
        each = part["ecl"]
        told = ecl.Collapse(each["layer"], depth, each["drop"], each["found"]).tell(each["drop_interval"])
        tables.say(
            f"{state}: Entropy Collapse Layer: {told}; {each['share']:.1%} of {profiles.DRAWS} bootstrap samples give "
            "this layer"
        )
    tables.say(
        f"for configs/ecl/: {yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000).strip()}"
    )
    _write(output / "profile.json", {"settings": settings, **found, "config": entry}, figures)


def _visual(visual: Tensor, pruning: Pruning | None) -> Tensor:
    """Columns of the decoder's blocks with visual tokens, now that the first of them runs."""
    return visual if pruning is None or pruning.state is None else pruning.state.entering_visual


@interrupted(RESUMES)
def horizon(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="pico: five questions about each drawn scene.")] = "pico",
    limit: Annotated[int, typer.Option(min=1, help="Scenes.")] = 2,
    seed: Annotated[int, typer.Option(help="Which scenes.")] = 0,
    output: OutputOption = Path("horizon"),
    window: Annotated[int, typer.Option(min=1, help="Side of a window, in visual tokens.")] = 3,
    layers: LayersOption = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of the maximum that counts as nothing.")] = 0.05,
    oracle: Annotated[
        int | None, typer.Option(min=1, help="Also keep this many tokens of most information, and random ones.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows in one forward pass.")] = 32,
    attn: AttnOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Information of windows of visual tokens by layer (arXiv 2512.07580), and the layer where it vanishes."""
    if task != "pico":
        raise typer.BadParameter(f"expected pico, got {task}", param_hint="--task")
    from ..lab import horizon as horizons
    from ..lab import plots
    from ..lab.loading import load_model
    from ..lab.pico import scenes
    from ..registry import registry

    outputs.check_output(output, folder=True)
    loaded = load_model(model, attn, _dtype(dtype), device)
    adapter = registry().adapter(loaded.model.config)
    depth = len(adapter.blocks(adapter.decoder(adapter.base(loaded.model))))
    chosen = _layers(layers, 0, depth - 1) or list(range(depth))
    drawn = islice(scenes.held_out(seed), limit)
    asked = [(f"{i}/{question.kind}", scene, question) for i, scene in enumerate(drawn) for question in scene.questions]
    first = loaded.inputs(asked[0][2].text, [asked[0][1].picture])
    n = int(adapter.visual(loaded.model.config, first["input_ids"]).sum())
    cut = horizons.windows(adapter, loaded.model.config, first, window)
    settings = {
        **_settings("horizon", loaded, adapter), "task": task, "seed": seed, "window": window, "layers": chosen,
    }  # fmt: skip
    if oracle is not None:
        horizons.check_oracle(oracle, n)
    results.check_settings(output / "horizon.json", settings)
    rows = results.Rows(output / "rows", settings)
    with tables.bar() as progress:
        step = progress.add_task("prompts x layers", total=len(asked) * len(chosen))
        for done, (key, scene, question) in enumerate(asked):
            token = loaded.first_token(question.text, question.answer)
            inputs = loaded.inputs(question.text, [scene.picture])
            if key not in rows:
                found = horizons.row(
                    loaded.model, adapter, inputs, token, cut, chosen, batch, lambda: progress.advance(step)
                )
                about = {"kind": question.kind, "question": question.text, "answer": question.answer}
                rows.add(key, {**about, "token": token, **found})
            if oracle is not None and (extra := f"{key} oracle {oracle}") not in rows:
                kept = horizons.oracle_row(loaded.model, adapter, inputs, token, cut, chosen, rows[key], oracle, seed)
                rows.add(extra, {"kind": question.kind, **kept})
            progress.update(step, completed=(done + 1) * len(chosen))
    measured = [{"key": key, **rows[key]} for key, _, _ in asked]
    kinds = [kind for kind in scenes.KINDS if any(row["kind"] == kind for row in measured)]
    groups = {**{kind: [row for row in measured if row["kind"] == kind] for kind in kinds}, "all": measured}
    found = {name: horizons.summary(group, chosen, threshold) for name, group in groups.items()}
    result: dict[str, Any] = {
        "settings": settings,
        "rule": horizons.RULE.format(threshold=threshold),
        "threshold": threshold,
        "layers": chosen,
        "windows": [{"picture": w.picture, "box": w.box, "tokens": w.tokens} for w in cut],
        "kinds": found,
        "prompts": [
            {
                **{name: value for name, value in row.items() if name not in ("key", "windows")},
                "information": [[round(x, 7) for x in line] for line in horizons.information(row).tolist()],
            }
            for row in measured
        ],
    }
    if oracle is not None:
        told = {key: rows[f"{key} oracle {oracle}"] for key, _, _ in asked}
        parts = {name: horizons.oracle_summary([told[row["key"]] for row in group]) for name, group in groups.items()}
        result["oracle"] = {"keep": oracle, "kinds": parts}
    title = f"{settings['model']}, {limit} scenes, {window} x {window} tokens"
    figures = {
        "horizon.png": partial(plots.horizon, found, chosen, threshold, title),
        "heatmaps.png": partial(_heatmaps, asked, rows, cut, chosen, f"{title}: p(only this window) - p(none)"),
    }
    _print(found, result.get("oracle"), chosen, title)
    tables.say(f"horizon: {result['rule']}")
    _write(output / "horizon.json", result, figures)


def _write(path: Path, result: Mapping[str, Any], figures: Mapping[str, Callable[[], bytes]]) -> None:
    """Numbers as JSON and, where there is matplotlib, figures beside them; says what was written."""
    from ..lab import plots

    results.check_settings(path, result["settings"])  # another run may have ended there in the meantime
    outputs.write(path, json.dumps(result) + "\n")
    written = [path, *outputs.write_all(path.parent, plots.draw(figures))]
    tables.say(f"wrote {', '.join(one.name for one in written)} to {path.parent}")
    if (why := plots.missing()) is not None:
        tables.say(why, sys.stderr)


def _print(found: dict[str, Any], oracle: dict[str, Any] | None, layers: list[int], title: str) -> None:
    rows = []
    for kind, part in found.items():
        at = "none" if part["horizon"] is None else str(part["horizon"])
        share = f"{part['right']}/{part['prompts']}"
        rows.append([kind, share, f"{part['full']:.3f}", f"{max(part['strength']):.2g}", at])
    tables.show(title, ["kind", "right", "p, all tokens", "largest |I|", "horizon"], rows)
    if oracle is None:
        return
    title = f"mean p of the right first token, {oracle['keep']} tokens kept"
    rows = []
    for i, layer in enumerate(layers):
        kept = [oracle["kinds"]["all"][name]["p"][i] for name in ("oracle", "random")]
        rows.append([str(layer), *(f"{p:.3f}" for p in (*kept, found["all"]["none"][i]))])
    tables.show(title, ["from layer", "oracle", "random", "none"], rows)


def _heatmaps(asked: list[Any], rows: results.Rows, cut: list[Any], layers: list[int], title: str) -> bytes:
    """The first scene's questions, in up to eight layers."""
    from ..lab import horizon as horizons
    from ..lab import plots

    few = sorted({round(i * (len(layers) - 1) / 7) for i in range(8)})
    first = [(key, scene, question) for key, scene, question in asked if key.startswith("0/")]
    parts = [(f"{q.kind}: {q.answer}", scene.picture, horizons.information(rows[key])[few]) for key, scene, q in first]
    return plots.heatmaps(parts, [window.box for window in cut], [layers[i] for i in few], title)


def _settings(command: str, loaded: Loaded, adapter: Adapter) -> dict[str, Any]:
    """What rows of any command depend on."""
    from importlib.metadata import version

    import torch

    from .. import ecl

    config = loaded.model.config
    return {
        "command": command,
        "model": Path(str(config._name_or_path)).name,
        "weights": ecl.fingerprint(loaded.model, adapter),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "attention": str(config._attn_implementation),
        "device": loaded.model.device.type,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _pictures(data: str, limit: int, seed: int) -> dict[str, Path | None]:
    """Keys of the pictures to show, with their files; a seed orders a folder the same whatever else is in it."""
    if data == "pico":
        return {str(i): None for i in range(limit)}
    from ..lab.media import pictures

    folder = Path(data)
    if not folder.is_dir():
        raise MediaError(f"expected --data pico or a folder of pictures, got {data}, which is no folder")
    order = sorted(pictures(folder), key=lambda path: hashlib.sha256(f"{seed} {path.name}".encode()).digest())
    return {f"{path.name} {path.stat().st_size}": path for path in order[:limit]}


def _layers(text: str | None, low: int, high: int) -> list[int] | None:
    """`1,2,16` as ascending numbers."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and low <= int(part) <= high for part in parts):
        raise LayerError(f"expected layers from {low} to {high} such as {low},{high}, got {text!r}")
    return sorted({int(part) for part in parts})


def _prefill(loaded: Loaded, inputs: dict[str, torch.Tensor]) -> None:
    import torch

    with torch.inference_mode():
        loaded.model(**inputs, logits_to_keep=1, use_cache=False)
