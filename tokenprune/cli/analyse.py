"""Commands that look into a model: its entropy by layer, and where its visual tokens stop to tell anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..outputs import check_output
from . import tables
from .interrupt import RESUMES, interrupted
from .options import (
    AttnOption,
    DeviceOption,
    DtypeOption,
    LayersOption,
    ModelArgument,
    RowsOption,
    TrustOption,
    load_model,
)

if TYPE_CHECKING:
    from ..lab.horizon import Horizon
    from ..lab.profile import Profile


@interrupted(RESUMES)
def profile(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="A folder of pictures, or pico (drawn scenes).")] = "pico",
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many pictures.")] = 64,
    seed: Annotated[int, typer.Option(help="Which pictures or scenes, and of the bootstrap.")] = 0,
    output: RowsOption = Path("profile"),
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
    trust_family: TrustOption = False,
) -> None:
    """Entropy of visual tokens by layer, spectra of some `--layers`, and the collapse layer with its stability."""
    from ..lab import profile as profiles
    from ..recipe import load

    shown = profiles.choose(data, limit, seed)
    if recipe is not None and load(recipe).decoder_passes:
        raise typer.BadParameter(
            f"recipe {recipe} drops tokens in the decoder, whose layers are to be measured: give one that prunes "
            "inside the vision tower alone",
            param_hint="--recipe",
        )
    check_output(output, folder=True)
    loaded = load_model(model, attn, dtype, device, trust_family)
    asked = profiles.Asked(shown, data, seed, ask, layers, recipe)
    made = profiles.measure(loaded, asked, output, lambda items: tables.follow(items, "prefills"))
    _print_profile(made)
    tables.wrote(made.save())


def _print_profile(made: Profile) -> None:
    """The entropy of every block, and the layer that each state says with its stability."""
    import yaml

    from ..lab.profile import DRAWS

    states, main = made.found["states"], made.collapse("queries")
    lines = []
    for block in range(main.depth):
        mark = f" <- {'ECL' if main.found else 'steepest'}" if block + 1 == main.layer else ""
        lines.append([f"{block + 1}{mark}", *(f"{part['entropy'][block]:.4f}" for part in states.values())])
    tables.show(made.title, ["block", *(f"{state} (nats)" for state in states)], lines)
    for state, part in states.items():
        told = made.collapse(state).tell(part["ecl"]["drop_interval"])
        share = f"{part['ecl']['share']:.1%} of {DRAWS} bootstrap samples give this layer"
        tables.say(f"{state}: Entropy Collapse Layer: {told}; {share}")
    entry = yaml.safe_dump(made.entry(), default_flow_style=True, sort_keys=False, width=1000)
    tables.say(f"for configs/ecl/: {entry.strip()}")


@interrupted(RESUMES)
def horizon(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="pico: five questions about each drawn scene.")] = "pico",
    limit: Annotated[int, typer.Option(min=1, help="Scenes.")] = 2,
    seed: Annotated[int, typer.Option(help="Which scenes.")] = 0,
    output: RowsOption = Path("horizon"),
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
    trust_family: TrustOption = False,
) -> None:
    """Information of windows of visual tokens by layer (arXiv 2512.07580), and the layer where it vanishes."""
    if task != "pico":
        raise typer.BadParameter(f"expected pico, got {task}", param_hint="--task")
    from ..lab import horizon as horizons

    check_output(output, folder=True)
    loaded = load_model(model, attn, dtype, device, trust_family)
    asked = horizons.Asked(limit, seed, window, layers, threshold, oracle, batch)
    made = horizons.prepare(loaded, asked, output)
    with tables.bar() as progress:
        bar = progress.add_task("prompts x layers", total=made.total)
        horizons.measure(
            loaded,
            made,
            advance=lambda: progress.advance(bar),
            complete=lambda done: progress.update(bar, completed=done),
        )
    _print_horizon(made)
    tables.say(f"horizon: {made.rule}")
    tables.wrote(made.save())


def _print_horizon(made: Horizon) -> None:
    """Where the information of each kind of question vanishes, and what the oracle keeps."""
    rows = []
    for kind, part in made.kinds.items():
        at = "none" if part["horizon"] is None else str(part["horizon"])
        share = f"{part['right']}/{part['prompts']}"
        rows.append([kind, share, f"{part['full']:.3f}", f"{max(part['strength']):.2g}", at])
    tables.show(made.title, ["kind", "right", "p, all tokens", "largest |I|", "horizon"], rows)
    if made.oracle is None:
        return
    rows = []
    for i, layer in enumerate(made.layers):
        kept = [made.oracle["kinds"]["all"][name]["p"][i] for name in ("oracle", "random")]
        rows.append([str(layer), *(f"{p:.3f}" for p in (*kept, made.kinds["all"]["none"][i]))])
    title = f"mean p of the right first token, {made.oracle['keep']} tokens kept"
    tables.show(title, ["from layer", "oracle", "random", "none"], rows)
