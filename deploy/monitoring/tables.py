"""Tables on a terminal, and in a pipe or a file, where nothing may be cut off."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from deploy.process.output import printable

FILE_WIDTH = 10_000
"""Columns that a table may have where the output is no terminal, which has a width of its own."""


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal, elsewhere as wide as its longest row."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(width=FILE_WIDTH)).maximum
    console.print(table)


def add_row(table: Table, cells: Sequence[str]) -> None:
    """Adds a row of texts of any origin."""
    table.add_row(*map(printable, cells))
