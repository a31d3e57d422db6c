"""`tokenprune verify` and `tokenprune ls families`: whether pruning holds for model types."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from . import tables
from .interrupt import interrupted
from .options import JsonOption

if TYPE_CHECKING:
    from ..verify.verdict import Verdict


@interrupted("what was checked is remembered, the same command goes on from there")
def verify(
    model: Annotated[
        str | None,
        typer.Argument(help="A model type of transformers, a folder or its config.json, a hub id, or pico."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every type not checked yet, then `ls families`.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether pruning holds for a model type, on a tiny random model of its config: no weights are needed.

    Pruning is compared with the same tokens hidden by a mask, or taken out of the sequence where blocks keep states,
    and what scorers read with the model's own attention. Types without an adapter of their own are pruned after this
    check has passed; it runs by itself when such a model is first pruned. trust_family=True of tokenprune.prune and
    attach leaves it out, and so does --trust-family of generate, calibrate, profile, horizon, bench and sweep.

    Exit code 1: not verified.
    """
    if (model is None) == (not every):
        raise typer.BadParameter("give a model type or a model, or --all", param_hint="MODEL")
    from transformers.utils import logging

    from ..lab import families, verification

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if model is None:
        verification.verify_all(tables.follow(families.unchecked(), "model types"))
        list_families(as_json)
        return
    with tables.bar(transient=True) as progress:
        progress.add_task(f"checking {model}", total=None)
        found = verification.verify_named(model)
    if as_json:
        print(json.dumps(families.described(found)))
    else:
        _print_verdict(found)
    raise typer.Exit(0 if found.refusal is None else 1)


def _print_verdict(found: Verdict) -> None:
    from ..lab.families import conclusion

    title = f"{found.model_type} with decoder {found.decoder}, on transformers {found.transformers}"
    rows = [[one.name, one.failure or "holds"] for one in found.comparisons]
    if rows:
        tables.show(title, ["comparison", "outcome"], rows, words=["comparison", "outcome"])
    tables.say(conclusion(found), color=None if found.refusal is None or not sys.stdout.isatty() else "red")


def list_families(as_json: bool) -> None:
    """Every image-text model type with its adapter and what checks of it came to here."""
    from ..lab.families import families

    found = families()
    if as_json:
        print(json.dumps([one.described for one in found]))
        return
    rows = [[one.model_type, one.adapter or "standard", one.told] for one in found]
    tables.show("model types that take pictures and text", ["model type", "adapter", "here"], rows, words=["here"])
    verified = sum(one.adapter is None and any(v.refusal is None for v in one.verdicts) for one in found)
    own = sum(one.adapter is not None for one in found)
    tables.say(
        f"{own} of {len(found)} types have an adapter of their own; the standard one is verified for {verified} more "
        "here. A type that is not checked yet is checked when a model of it is first pruned, or by tokenprune verify"
    )
