"""The `tokenprune` command. Exit codes: 0, 1 for a run that failed, 2 for bad usage."""

from __future__ import annotations

import sys

import typer

from ..errors import BudgetError, LayerError, RecipeError, TokenpruneError, UnknownNameError
from . import analyse, catalog, create, evaluate, measure, run
from . import demo as showing

app = typer.Typer(
    help="Visual token pruning for multimodal LLMs on stock transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(catalog.ls, catalog.show, catalog.check, catalog.explain),
    *(run.generate, run.calibrate, showing.demo),
    *(analyse.profile, analyse.horizon, measure.bench, measure.sweep),
)
for command in COMMANDS:
    app.command()(command)
app.command("eval")(evaluate.evaluate)
app.command("new-plugin")(create.new_plugin)


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, USAGE) else 1)
