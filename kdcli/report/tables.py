"""The one look of every table: a header, a rule, columns by alignment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from kdcli.report.console import printable

Cell = str | Text


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table; a column named `>...` holds numbers and goes to the right. Cells fold, never truncate."""
    drawn = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for name in columns:
        right = name.startswith(">")
        drawn.add_column(
            printable(name.removeprefix(">")),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*map(_drawable, row))
    return drawn


def _drawable(cell: Cell) -> Text:
    return Text("\n".join(map(printable, cell.split("\n")))) if isinstance(cell, str) else cell
