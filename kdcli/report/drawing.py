"""Figures as SVG that follows the page: light or dark, and readable on a phone.

Ink and grid are sentinel colours while matplotlib draws and CSS variables afterwards; the lines' colours
are of a middle tone that shows on both backgrounds, and lines differ in their dashes too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib import import_module
from io import BytesIO
from typing import Any, TypeAlias

from kdcli.errors import RunError

Axes: TypeAlias = Any
"""matplotlib.axes.Axes, which need not be installed."""

INK, GRID = "#0a0b0c", "#0a0b0d"
PALETTE = ("#3b82c4", "#e0762f", "#2e9e6b", "#c2528b", "#8a6fd1", "#b59a1f", "#4fa8b8", "#9a6b4f")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def need_matplotlib() -> None:
    """RunError KD755 where the plotting library is not installed."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise RunError.of(
            "KD755", "drawing curves needs matplotlib", "install it with `pip install 'kdcli[report]'`"
        ) from error


def line_look(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[(index // 2) % len(DASHES)],
    }


@dataclass(frozen=True, slots=True)
class Chart:
    """Something to draw, in a page or into a file. draw fills the axes; width and height in inches."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 4.6
    height: float = 2.9

    def svg(self) -> str:
        """An <svg> element for a page."""
        return svg(self.draw, title=self.title, width=self.width, height=self.height)

    def png(self) -> bytes:
        """A picture of its own."""
        return picture(self.draw, "png", width=1.2 * self.width, height=1.2 * self.height, dpi=120)


def svg(draw: Callable[[Axes], None], *, title: str, width: float = 4.6, height: float = 2.9) -> str:
    """An <svg> element; draw fills the axes; inches of width and height set how large text is beside it."""
    need_matplotlib()
    drawn = _drawn({**_STYLE, "svg.hashsalt": title}, draw, "svg", width, height, 72).decode()
    drawn = drawn.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    drawn = _METADATA.sub("", drawn[drawn.index("<svg") :])
    label = f'<svg role="img" aria-label="{escape(title)}" '
    return _CONTROL.sub("\ufffd", drawn.replace("<svg ", label, 1))


def picture(
    draw: Callable[[Axes], None], format: str, *, width: float = 8.0, height: float = 4.5, dpi: int = 150
) -> bytes:
    """A file of its own, dark on white: format svg, png or pdf."""
    need_matplotlib()
    colours = {INK: "#222222", GRID: "#dddddd"}
    plain = {
        key: colours.get(value, value) if isinstance(value, str) else value for key, value in _STYLE.items()
    }
    plain |= {"savefig.facecolor": "white", "svg.hashsalt": "kdcli"}
    return _drawn(plain, draw, format, width, height, dpi)


def _drawn(
    style: dict[str, Any], draw: Callable[[Axes], None], format: str, width: float, height: float, dpi: int
) -> bytes:
    matplotlib, figures = import_module("matplotlib"), import_module("matplotlib.figure")
    buffer = BytesIO()
    with matplotlib.rc_context(style), _quiet():
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        # Without the date the same run gives the same file.
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(buffer, format=format, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def legend_above(axes: Axes, labels: Sequence[str]) -> None:
    """A legend over the plot, where it hides no curve; long names one below the other."""
    columns = 1 if max(map(len, labels), default=0) > 18 else 2
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9, borderaxespad=0.2)


@contextmanager
def _quiet() -> Iterator[None]:
    """A glyph the layout font lacks (a Chinese class name) is no matter: the browser brings its own fonts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
