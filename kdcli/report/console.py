"""Terminal output with Rich: consoles, tables, colour, text without control characters.

Colour is for terminals; NO_COLOR turns it off, FORCE_COLOR turns it on for a pipe. Live drawing needs a real
terminal, whatever those two say.
"""

from __future__ import annotations

import os
import shutil
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
"""Line width for text that goes to files and pipes: wider than any table, so that nothing wraps."""


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal that understands control codes."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def wants_colour(stream: TextIO) -> bool:
    """Whether to write colours to the stream: never with NO_COLOR, else with FORCE_COLOR or on a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def screen_width(stream: TextIO) -> int | None:
    """The columns of a terminal; None for a file or a pipe, where nothing wraps."""
    return shutil.get_terminal_size().columns if is_terminal(stream) else None


class SteadyConsole(Console):
    """Rich's console, but BrokenPipeError is raised when nobody reads the pipe; Rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError instead of ending the process."""
        raise BrokenPipeError("nobody reads this stream any more")


def console_for(stream: TextIO, width: int | None = None) -> Console:
    """A Rich console that prints text to the stream as it is: no markup, no highlighting, no emoji codes."""
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


def as_text(renderable: RenderableType, *, width: int | None = None, colour: bool = False) -> str:
    """A Rich renderable as text, without spaces at line ends; nothing wraps where there is no width."""
    console = Console(
        file=StringIO(),
        width=UNBOUNDED if width is None else width,
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
    """Write text to the stream (standard output), with escapes for characters that its encoding lacks."""
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def printable(text: str) -> str:
    """The text with control characters made visible, so that text of a spec can't control the terminal."""
    return "".join(_visible(char) for char in text)


def display_width(text: str) -> int:
    """How many cells of a terminal the text takes."""
    return cell_len(text)


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cc":
        return chr(0x2400 + ord(char)) if ord(char) < 0x20 else "\ufffd"
    return "\ufffd" if category in ("Cf", "Cs", "Zl", "Zp") else char


Cell = str | Text


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A Rich table in the look of all tables; columns named `>...` are right-aligned; long cells wrap."""
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
