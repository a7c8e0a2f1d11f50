"""HTML elements of report.html; all text that comes from a user is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from kdcli.report.console import printable

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1d232b; --soft: #5c6773;
  --grid: #d9dee4; --accent: #2f6fae; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161b; --card: #1b2128; --ink: #e4e8ec;
  --soft: #98a3ae; --grid: #333c46; --accent: #79b4ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.card { background: var(--card); border-radius: .6rem; padding: .8rem; min-width: 0; }
section > .card + .card { margin-top: 1rem; }
.card h3 { margin: 0 0 .3rem; } .wide { max-width: 46rem; }
svg { width: 100%; height: auto; display: block; }
.wide svg { width: auto; max-width: 100%; }
svg text { fill: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
td.n, th.n { text-align: right; padding: .3rem 0 .3rem 1rem; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; background: var(--card); border-radius: .6rem; padding: .6rem; min-width: 0; }
figure img { width: 100%; image-rendering: pixelated; border-radius: .3rem; display: block; }
figcaption { font-size: .85rem; margin-top: .4rem; overflow-wrap: anywhere; }
.maps { display: grid; grid-template-columns: repeat(3, minmax(0, 9rem)); gap: .5rem; margin-bottom: .5rem; }
.maps img { width: 100%; image-rendering: pixelated; border-radius: .3rem; display: block; }
pre { background: var(--card); border-radius: .6rem; padding: .8rem; overflow-x: auto; font-size: .85rem; }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: .2rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
"""

# Nothing may be fetched from anywhere, whatever slipped into the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: object) -> str:
    """The value as text, escaped for HTML, control characters made visible."""
    return "\n".join(escape(printable(line)) for line in str(value).split("\n"))


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<link rel="icon" href="data:,">\n<title>{text(title)}</title>\n<style>{STYLE}</style>\n'
        "</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A section with a heading; "" if no part has content."""
    content = [part for part in parts if part]
    anchor = re.sub(r"\W+", "-", title.lower())
    return (
        "\n".join([f'<section id="{anchor}">\n<h2>{text(title)}</h2>', *content, "</section>"])
        if content
        else ""
    )


def paragraph(words: str) -> str:
    """A paragraph in a soft colour; "" without words."""
    return f'<p class="soft">{text(words)}</p>' if words else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways; the first column holds names, the others numbers."""
    head = "".join(_cell("th", index, name) for index, name in enumerate(columns))
    body = "\n".join(
        "<tr>" + "".join(_cell("td", index, value) for index, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table>\n{inner}</table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names with their values; long values wrap."""
    rows = "\n".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return f"<dl>\n{rows}\n</dl>" if rows else ""


def card(title: str, content: str, *, wide: bool = False) -> str:
    """A box with a small heading; content is HTML."""
    return f'<div class="card{" wide" if wide else ""}"><h3>{text(title)}</h3>{content}</div>'


def cards(parts: Iterable[str]) -> str:
    """Boxes side by side where there is room."""
    joined = "\n".join(parts)
    return f'<div class="cards">\n{joined}\n</div>' if joined else ""


def folded(title: str, words: str) -> str:
    """Preformatted text that is hidden until its title is clicked."""
    return f"<details><summary>{text(title)}</summary><pre>{text(words)}</pre></details>"


def image(uri: str, alternative: str) -> str:
    """An image from a data URI, which was checked when it was read."""
    return f'<img src="{escape(uri)}" alt="{text(alternative)}" loading="lazy">'


def _cell(tag: str, index: int, value: str) -> str:
    return f"<{tag}>{text(value)}</{tag}>" if index == 0 else f'<{tag} class="n">{text(value)}</{tag}>'
