"""Where the command begins, also as `python -m tokenprune`. It imports nothing: Ctrl-C is quiet from here on."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit; 130 after Ctrl-C, as of any other program, be it while modules are imported."""
    try:
        from . import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
