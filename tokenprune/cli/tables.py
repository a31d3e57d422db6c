"""Tables, sentences and bars of the command line: they fit the terminal, and no number is cut in two."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
GAP = 2  # between columns
ROOM = 20  # words are not squeezed into less than this to get one more column into a block
FULL = 100_000  # a line where there is no terminal


def show(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str | Text]], words: Collection[str] = (), keys: int = 1
) -> None:
    """Print a table; where a terminal has no room for all columns side by side, the others follow in further blocks.

    Headers and cells of words wrap between words; other cells never do, so that numbers stay whole. In a pipe or a
    file a table is one block, as wide as it is, unless COLUMNS says how wide it shall be.

    Args:
        title: printed above.
        header: one name per column.
        rows: one cell per column.
        words: names of the columns whose cells may wrap.
        keys: the first so many columns say what a row is about. Every block has them; where they are empty the row
            belongs to the one above, which further blocks write out, and they leave out rows that have nothing else.
    """
    width = terminal(sys.stdout)
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    columns = [[row[i] for row in cells] for i in range(len(header))]
    bounds = [_bounds(name, cells, name in words) for name, cells in zip(header, columns, strict=True)]
    if title:
        say(title)
    for number, block in enumerate(_blocks([least for least, _ in bounds], keys, width)):
        sizes = _sizes([bounds[i] for i in block], width)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        for i, size in zip(block, sizes, strict=True):
            table.add_column(Text(header[i]), width=size)
        for row in range(len(rows)):
            if number == 0:
                table.add_row(*(columns[i][row] for i in block))
            elif any(columns[i][row] for i in block[keys:]):
                told = [next((cell for cell in columns[i][row::-1] if cell), Text()) for i in block[:keys]]
                table.add_row(*told, *(columns[i][row] for i in block[keys:]))
        wide = max(width, _total(sizes))  # a terminal that has no room for one column cuts nothing either
        Console(width=wide, height=1).print(table)  # with a height rich asks no terminal for its size
        print()


def bar(**options: Any) -> Progress:
    """A progress bar on stderr, so that results may go into a file; imported when one is shown."""
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), **options)


def follow(items: Sequence[T], what: str) -> Iterator[T]:
    """Each item in turn, behind a bar."""
    with bar() as shown:
        yield from shown.track(items, description=what)


def say(text: str, file: TextIO | None = None, color: str | None = None) -> None:
    """Print sentences; in a terminal lines end between words, and have their color."""
    file = file or sys.stdout
    width = terminal(file)
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        parts = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        line = "\n".join(parts) if len(line) > width else line
        typer.echo(typer.style(line, color) if color else line, file)


def wrote(written: Sequence[Path]) -> None:
    """Say which files are in their folder, and why there are no figures where there is no matplotlib."""
    say(f"wrote {', '.join(one.name for one in written)} to {written[0].parent}")
    _say_missing()


def listed(written: Sequence[Path]) -> None:
    """The same with a path a line, for programs that go on with the files."""
    for path in written:
        print(path)
    _say_missing()


def _say_missing() -> None:
    from ..lab import plots

    if (why := plots.missing()) is not None:
        say(why, sys.stderr)


def terminal(file: TextIO) -> int:
    """Characters in a line of what a file writes to, or as COLUMNS says."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(file.fileno()).columns or 80  # 0 where a terminal does not know
    except (OSError, ValueError):  # a pipe, or no file of the system at all
        return FULL


def _bounds(name: str, cells: Iterable[Text], words: bool) -> tuple[int, int]:
    """The least width of a column, and that without any wrapping."""
    texts = [cell.plain for cell in cells]
    whole = _longest(texts)
    least = max(_longest(word for text in texts for word in text.split()), min(whole, ROOM)) if words else whole
    return max(least, _longest(name.split())), max(whole, cell_len(name))


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _total(sizes: Sequence[int]) -> int:
    return sum(sizes) + GAP * (len(sizes) - 1)


def _blocks(least: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Numbers of the columns that stand side by side, in order."""
    blocks = [list(range(keys))]
    for i in range(keys, len(least)):
        if len(blocks[-1]) > keys and _total([least[j] for j in [*blocks[-1], i]]) > width:
            blocks.append(list(range(keys)))
        blocks[-1].append(i)
    return blocks


def _sizes(bounds: Sequence[tuple[int, int]], width: int) -> list[int]:
    """Widths of the columns of a block: the widest of those that can wrap gives way until all fit."""
    sizes = [whole for _, whole in bounds]
    while _total(sizes) > width:
        giving = [i for i, (least, _) in enumerate(bounds) if sizes[i] > least]
        if not giving:
            break
        sizes[max(giving, key=lambda i: sizes[i])] -= 1
    return sizes
