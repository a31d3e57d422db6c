"""What Ctrl-C says of a command that takes long."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import typer

RESUMES = "rows that are done stay in {output}/rows, the same command goes on from there"
STARTS_ANEW = "no results were written, the same command starts anew"


def interrupted(advice: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let Ctrl-C end a command with one line and exit code 130. `advice` may name the command's options."""

    def around(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**options: object) -> None:
            try:
                command(**options)
            except KeyboardInterrupt:
                print(f"\ninterrupted: {advice.format(**options)}", file=sys.stderr)
                raise typer.Exit(130) from None

        return run

    return around
