"""Streams and consoles: who gets colour, who gets live drawing, and writing that never breaks.

Colour is for terminals; NO_COLOR takes it away and FORCE_COLOR gives it to a pipe. Live drawing needs a real
terminal, whatever those two say.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

UNBOUNDED = 100_000
"""A width no table of ours reaches; text for files and pipes is laid out at it."""


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody looks at this stream, on a terminal that understands control codes."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def wants_colour(stream: TextIO) -> bool:
    """NO_COLOR first, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


class SteadyConsole(Console):
    """A console that reports a reader who left as BrokenPipeError; Rich's own would end the process."""

    def on_broken_pipe(self) -> None:
        """Hand the error on to whoever draws."""
        raise BrokenPipeError("nobody reads this stream any more")


def console_for(stream: TextIO, width: int | None = None) -> Console:
    """A console that prints our texts as they are: no markup, no highlighting, no emoji codes."""
    colour = wants_colour(stream)
    return SteadyConsole(
        file=stream,
        width=width if width is not None or is_terminal(stream) else UNBOUNDED,
        force_terminal=is_terminal(stream) or colour,
        no_color=not colour,
        color_system="auto" if colour else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def as_text(renderable: RenderableType, *, width: int = UNBOUNDED, colour: bool = False) -> str:
    """What a console would print, without spaces at line ends; control codes only with `colour`."""
    console = Console(
        file=StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as capture:
        console.print(renderable, soft_wrap=isinstance(renderable, Text))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def write(text: str, stream: TextIO | None = None) -> None:
    """Write to a stream (standard output), escaping what its encoding does not have."""
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def printable(text: str) -> str:
    """The text with control and formatting characters made visible, so that no spec can drive a terminal."""
    return "".join(_visible(char) for char in text)


def display_width(text: str) -> int:
    """How many terminal cells the text takes."""
    return cell_len(text)


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cc":
        return chr(0x2400 + ord(char)) if ord(char) < 0x20 else "\ufffd"
    return "\ufffd" if category in ("Cf", "Cs", "Zl", "Zp") else char


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
