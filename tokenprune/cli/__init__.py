"""The `tokenprune` command. Exit codes: 0, 1 for a run that failed, 2 for bad usage, 130 after Ctrl-C.

Modules of commands import torch, and all of tokenprune that does, inside their functions: help, completion and what is
mistyped are answered at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import BudgetError, LayerError, RecipeError, TokenpruneError, UnknownNameError
from ..version import __version__
from . import analyse, catalog, create, evaluate, families, measure, run, tables
from . import demo as showing

app = typer.Typer(
    help="Visual token pruning for multimodal LLMs on stock transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(catalog.ls, catalog.show, catalog.check, catalog.explain, families.verify),
    *(run.generate, run.calibrate, showing.demo),
    *(analyse.profile, analyse.horizon, measure.bench, measure.sweep),
)
for command in COMMANDS:
    app.command()(command)
app.command("eval")(evaluate.evaluate)
app.command("new-plugin")(create.new_plugin)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tokenprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print it.", is_eager=True, callback=_version)] = False,
) -> None:
    """Visual token pruning for multimodal LLMs on stock transformers."""


USAGE = (RecipeError, UnknownNameError, LayerError, BudgetError)
"""What is wrong with the command line itself, rather than with the run."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. An error is one message on stderr; `--debug` adds its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments  # wherever it stands
    try:
        app([argument for argument in arguments if argument != "--debug"])
    except TokenpruneError as error:
        if debug:
            raise
        tables.say(f"error: {error}", sys.stderr)
        sys.exit(2 if isinstance(error, USAGE) else 1)
