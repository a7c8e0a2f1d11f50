"""Terminal output with Rich: consoles, tables, colour, text without control characters.

Colour is for terminals; NO_COLOR turns it off, FORCE_COLOR turns it on for a pipe. Live drawing needs a real
terminal, whatever those two say.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
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


GAP = 3
"""Cells between two columns."""

READABLE = 16
"""A column that may wrap is not made narrower than this while another can be left out."""

UNBROKEN = 12
"""A head of so many cells stands in one line above numbers."""

HOW_TO_SEE_ALL = "a wider terminal or a pipe to `less -S` shows all"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. right: right-aligned, its cells in one line. whole: its cells are never wrapped.

    dropped: on a screen too narrow for all columns, those with the highest number are left out first; 0: never.
    """

    name: str
    right: bool = False
    whole: bool = False
    dropped: int = 0


def table(
    columns: Sequence[str | Column], rows: Iterable[Sequence[Cell]], *, how_to_see_all: str = HOW_TO_SEE_ALL
) -> FittedTable:
    """A table in the look of all tables; columns named `>...` are right-aligned.

    On a screen cells wrap between words; what does not fit even so is left out by the columns' priority, with a line
    that says what, and how to see it; columns without one go on in a second table below.
    """
    known = [
        one if isinstance(one, Column) else Column(one.removeprefix(">"), one.startswith(">"))
        for one in columns
    ]
    return FittedTable(known, [[_drawable(cell) for cell in row] for row in rows], how_to_see_all)


class FittedTable:
    """A table that decides on its columns when it is drawn, by the width of the screen."""

    def __init__(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Text]], how_to_see_all: str
    ) -> None:
        self.columns, self.rows, self.how_to_see_all = columns, rows, how_to_see_all
        cells = [[row[index] for row in rows if index < len(row)] for index in range(len(columns))]
        self.natural = [
            max([cell_len(printable(column.name)), *(_widest(cell.plain) for cell in of_column)])
            for column, of_column in zip(columns, cells, strict=True)
        ]
        self.least = [self._least(index, of_column) for index, of_column in enumerate(cells)]

    def _least(self, index: int, cells: Sequence[Text]) -> int:
        """How narrow a column can be: no word of it broken, and its text still readable."""
        column = self.columns[index]
        if column.whole or column.right:
            head = [column.name] if cell_len(column.name) <= UNBROKEN else column.name.split(" ")
            return max([*map(cell_len, head), *(_widest(cell.plain) for cell in cells), 1])
        pieces = [piece for cell in cells for line in cell.plain.split("\n") for piece in pieces_of(line)]
        pieces += pieces_of(column.name)
        word = max([cell_len(piece.rstrip()) for piece in pieces], default=1)
        return max(word, min(self.natural[index], READABLE))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.max_width
        shown = list(range(len(self.columns)))
        for index in sorted(shown, key=lambda index: (-self.columns[index].dropped, -index)):
            if _total(self.least, shown) <= room or not self.columns[index].dropped:
                break
            shown.remove(index)
        for number, block in enumerate(self._blocks(shown, room)):
            if number:
                yield Text("")
            yield self._drawn(block, room)
        left_out = [printable(column.name) for index, column in enumerate(self.columns) if index not in shown]
        if left_out:
            yield Text(
                f"left out here: {', '.join(dict.fromkeys(left_out))}; {self.how_to_see_all}", style="dim"
            )

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(max(self.least, default=1), options.max_width), options.max_width)

    def _blocks(self, shown: Sequence[int], room: int) -> list[list[int]]:
        """The columns in one table, or, where they do not fit, in several that repeat the first column."""
        if _total(self.least, shown) <= room or len(shown) < 3:
            return [list(shown)]
        first, *others = shown
        blocks = [[first]]
        for index in others:
            if len(blocks[-1]) > 1 and _total(self.least, [*blocks[-1], index]) > room:
                blocks.append([first])
            blocks[-1].append(index)
        return blocks

    def _drawn(self, shown: Sequence[int], room: int) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        cells = max(0, room - GAP * (len(shown) - 1))
        widths = _shared(
            [self.least[index] for index in shown], [self.natural[index] for index in shown], cells
        )
        for index, width in zip(shown, widths, strict=True):
            column = self.columns[index]
            drawn.add_column(
                _wrapped(Text(printable(column.name)), width),
                justify="right" if column.right else "left",
                no_wrap=_total(self.least, shown) <= room,
                overflow="fold",
            )
        for row in self.rows:
            drawn.add_row(
                *(
                    _wrapped(row[index], width) if index < len(row) else ""
                    for index, width in zip(shown, widths, strict=True)
                )
            )
        return drawn


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[index] for index in shown) + GAP * max(0, len(shown) - 1)


def _shared(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """Widths of columns in so much room: each its natural one, or of what is left the same as the other wide ones."""
    low, high = 0, max([*natural, 1])
    while low < high:
        cap = (low + high + 1) // 2
        if sum(max(a, min(b, cap)) for a, b in zip(least, natural, strict=True)) <= room:
            low = cap
        else:
            high = cap - 1
    return [max(a, min(b, low)) for a, b in zip(least, natural, strict=True)]


_AFTER_MARK = re.compile(r"(?<=[/,;:·(|+=])(?=\S)|(?<=\w\.)(?=\w*[a-zA-Z_])")
_BEFORE_UNDERSCORE = re.compile(r"(?<=[a-z0-9])(?=_[a-z])")
_LONG = 24
"""A word of more cells may be broken at its marks: names of layers and losses, formulas, paths."""


def pieces_of(line: str) -> list[str]:
    """A line in the pieces between which it may wrap: words, and parts of long ones (`job.teacher0.` `kd_loss`)."""
    pieces: list[str] = []
    for word in re.findall(r"\s*\S+\s*?(?=\s|$)|\s+$", line):
        if cell_len(word.strip()) <= _LONG:
            pieces.append(word)
        else:
            pieces += _parts_of(word)
    return pieces


def _parts_of(word: str) -> list[str]:
    """A long word in parts that are shorter, cut after marks, else before underscores."""
    parts: list[str] = []
    for part in _AFTER_MARK.split(word):
        cut = [part] if cell_len(part.strip()) <= _LONG else _BEFORE_UNDERSCORE.split(part)
        for one in cut:
            if parts and cell_len((parts[-1] + one).strip()) <= _LONG:
                parts[-1] += one
            else:
                parts.append(one)
    return parts


def _wrapped(cell: Text, width: int, indent: int = 0) -> Text:
    """The cell with line ends where a line is wider than so much, between words; less by `indent` after the first."""
    if _widest(cell.plain) <= width:
        return cell
    lines: list[Text] = []
    for line in cell.split("\n", allow_blank=True):
        start, at = 0, 0
        room = width - indent if lines else width
        for piece in pieces_of(line.plain):
            if at > start and cell_len(line.plain[start : at + len(piece)].rstrip()) > room:
                lines.append(_part(line, start, at))
                room = width - indent
                start = at + len(piece) - len(piece.lstrip())
            at += len(piece)
        lines.append(_part(line, start, len(line.plain)))
    return Text("\n").join(lines)


def _part(line: Text, start: int, end: int) -> Text:
    part = line[start:end]
    part.rstrip()
    return part


def wrapped(text: Text, width: int | None, indent: str = "") -> Text:
    """The text in lines of at most so many cells, broken between words; `indent` before each line after the first."""
    if width is None or _widest(text.plain) <= width:
        return text
    first, *rest = _wrapped(text, width, len(indent)).split("\n")
    return Text("\n").join([first, *(Text.assemble(indent, line) for line in rest)])


def wrapped_line(text: str, width: int | None, indent: str = "") -> str:
    """The same of a text without styles."""
    return wrapped(Text(text), width, indent).plain


class Paragraph:
    """Text whose lines stay as they are where they fit; on a narrower screen it is filled anew, between words."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        fits = _widest(self.text) <= options.max_width
        yield Text(self.text if fits else wrapped_line(" ".join(self.text.split()), options.max_width))


def packed(fields: Iterable[str], width: int, indent: str = "  ") -> str:
    """The fields side by side, as many in a line as fit; `indent` before each line after the first."""
    lines: list[str] = []
    for field in fields:
        longer = f"{lines[-1]}  {field}" if lines else field
        if lines and cell_len(longer) > width:
            lines.append(f"{indent}{field}")
        else:
            lines[-1:] = [longer]
    return "\n".join(lines)


def _widest(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _drawable(cell: Cell) -> Text:
    return Text("\n".join(map(printable, cell.split("\n")))) if isinstance(cell, str) else cell
