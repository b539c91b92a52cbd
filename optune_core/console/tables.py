"""The look of tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def wide_console(columns: int = 100) -> Console:
    """Return a console at least this wide, so that tables are not broken where the output is no terminal."""
    return Console(width=max(columns, Console().width))


def plain_table(title: str | Text, *, gap: int = 1) -> Table:
    """Return an empty table whose only line is under its head.

    Args:
        gap: columns of a terminal between those of the table.
    """
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> None:
    """Print cells aligned on the right under their columns, and a note below, however wide the terminal is."""
    widest = [
        max(len(line) for text in column for line in text.split("\n")) for column in zip(columns, *rows, strict=True)
    ]
    console = wide_console(max(100, sum(widest) + 2 * len(columns)))
    table = plain_table(Text(title))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    console.print(note, soft_wrap=True, markup=False)
