"""HTML elements of report.html; all text that comes from a user is escaped here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
.headline { font-size: 1.25rem; line-height: 1.35; margin: .5rem 0 .2rem; max-width: 52rem; }
.warning { border-left: .3rem solid #d08a1d; padding: .1rem 0 .1rem .8rem; margin: .5rem 0; }
.sides { display: grid; gap: 1.5rem 2.5rem; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 60rem) { .sides { grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); } }
.sides > div > h3:first-child { margin-top: 0; }
.cards { display: grid; align-items: start; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.cards.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
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
.result td:first-child, .result th:first-child { white-space: normal; position: sticky; left: 0;
  background: var(--paper); min-width: 7.5rem; }
.result th { white-space: normal; vertical-align: bottom; }
@media (max-width: 30rem) { .result { font-size: .85rem; } .result td.n, .result th.n { padding-left: .6rem; } }
.confusion { font-size: .8rem; border-spacing: 1px; border-collapse: separate; }
.confusion td, .confusion th { border: 0; padding: .15rem .3rem; text-align: center; min-width: 1.7rem; }
.confusion th:first-child { text-align: right; font-weight: normal; position: sticky; left: 0;
  background: var(--card); max-width: 8rem; overflow: hidden; text-overflow: ellipsis; }
.confusion thead th { font-weight: normal; vertical-align: bottom; }
.confusion thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 7rem;
  overflow: hidden; display: inline-block; }
.confusion td.none { color: var(--soft); }
.chart { position: relative; } .chart svg { touch-action: pan-y; }
.chart:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: .3rem; }
.chart output { position: absolute; top: 0; right: 0; max-width: 75%; padding: .3rem .5rem; font-size: .8rem;
  background: var(--paper); border: 1px solid var(--grid); border-radius: .4rem; pointer-events: none;
  overflow-wrap: anywhere; line-height: 1.35; }
.chart output.before { right: auto; left: 0; } .chart output span { display: block; }
.chart output[hidden] { display: none; }
.chart summary, .note { font-size: .85rem; } .chart table { font-size: .8rem; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.few { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; } .few figure { padding: 0; }
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

SCRIPT = """
for (const box of document.querySelectorAll('[data-lines]')) {
  const {x: what, lines, box: [left, top, right, bottom]} = JSON.parse(box.dataset.lines);
  const svg = box.querySelector('svg'), tip = box.querySelector('output');
  const make = (name, attributes) => {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    return svg.appendChild(made);
  };
  const rule = make('line', {y1: top, y2: bottom, stroke: 'currentColor', 'stroke-width': 0.6, visibility: 'hidden'});
  const dots = lines.map(line => make('circle', {r: 3, fill: line.c, visibility: 'hidden'}));
  const places = [...new Set(lines.flatMap(line => line.level ? [] : line.p.map(p => p[0])))].sort((a, b) => a - b);
  if (!places.length) continue;
  let at = -1;
  const hide = () => {
    at = -1; tip.textContent = ''; tip.hidden = true;
    for (const mark of [rule, ...dots]) mark.setAttribute('visibility', 'hidden');
  };
  const show = index => {
    at = Math.max(0, Math.min(places.length - 1, index));
    const x = places[at], words = [];
    let named = '';
    lines.forEach((line, k) => {
      if (!line.p.length) return;
      const near = line.p.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      const here = line.level || Math.abs(near[0] - x) < 0.06;
      dots[k].setAttribute('visibility', here ? 'visible' : 'hidden');
      if (!here) return;
      if (!line.level) named = named || near[2];
      dots[k].setAttribute('cx', line.level ? x : near[0]);
      dots[k].setAttribute('cy', near[1]);
      words.push([line.n, near[3], line.c]);
    });
    rule.setAttribute('x1', x); rule.setAttribute('x2', x); rule.setAttribute('visibility', 'visible');
    tip.replaceChildren(`${what} ${named}`, ...words.map(([name, value, colour]) => {
      const row = document.createElement('span'), key = document.createElement('b');
      key.textContent = '\u25cf '; key.style.color = colour;
      row.append(key, `${name} ${value}`);
      return row;
    }));
    tip.hidden = false;
    tip.className = x > (left + right) / 2 ? 'before' : '';
  };
  const nearest = event => {
    const area = svg.getBoundingClientRect(), x = (event.clientX - area.left) * svg.viewBox.baseVal.width / area.width;
    show(places.reduce((best, place, k) => Math.abs(place - x) < Math.abs(places[best] - x) ? k : best, 0));
  };
  svg.addEventListener('pointermove', nearest);
  svg.addEventListener('pointerdown', nearest);
  svg.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') hide(); });
  box.tabIndex = 0;
  box.addEventListener('focus', () => { if (at < 0) show(places.length - 1); });
  box.addEventListener('blur', hide);
  box.addEventListener('keydown', event => {
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1}[event.key];
    if (event.target !== box) return;
    if (event.key === 'Escape') hide();
    if (to === undefined) return;
    event.preventDefault(); show(to);
  });
}
"""
"""Shows the values of a chart's lines where the pointer is, or, with the arrow keys, at one place after the other."""

_SEAL = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# Nothing may be fetched from anywhere, and no other script may run, whatever slipped into the page.
_POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_SEAL}'"


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
        "</head>\n<body>\n" + "\n".join(body) + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
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


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table that scrolls sideways; the first column holds names, the others numbers. kind: its class."""
    head = "".join(_cell("th", index, name) for index, name in enumerate(columns))
    body = "\n".join(
        "<tr>" + "".join(_cell("td", index, value) for index, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    named = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{named}>\n{inner}</table></div>'


def note(words: str) -> str:
    """A small paragraph below a table."""
    return f'<p class="soft note">{text(words)}</p>'


def matrix(names: Sequence[str], rows: Sequence[Sequence[int]]) -> str:
    """Counts by row and column of the same names; the diagonal and what is beside it in shades of two colours."""
    head = "".join(f'<th scope="col"><span>{text(name)}</span></th>' for name in names)
    body = []
    for at, (name, counts) in enumerate(zip(names, rows, strict=True)):
        total = sum(counts)
        cells = "".join(
            _shaded(
                count,
                count / total if total else 0.0,
                right=at == place,
                words=f"{name} answered {names[place]}",
            )
            for place, count in enumerate(counts)
        )
        body.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    lines = "\n".join(body)
    inner = f"<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>"
    return f'<div class="scroll"><table class="confusion">\n{inner}</table></div>'


def _shaded(count: int, share: float, *, right: bool, words: str) -> str:
    if not count:
        return '<td class="none">·</td>'
    colour = "59,130,196" if right else "224,118,47"
    strength = 0.15 + (0.55 if right else 0.85) * min(1.0, share)
    return f'<td title="{text(words)}" style="background:rgba({colour},{strength:.2f})">{count}</td>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names with their values; long values wrap, paths after a slash first."""
    rows = "\n".join(
        f"<dt>{text(name)}</dt><dd>{text(value).replace('/', '/<wbr>')}</dd>" for name, value in pairs
    )
    return f"<dl>\n{rows}\n</dl>" if rows else ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart. points: place in the <svg>, across and down, and what the two values are in words.

    level: whether it is one value over the whole width.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float, str, str]]
    level: bool = False


@dataclass(frozen=True, slots=True)
class Plotted:
    """The lines of a chart, the name of what runs across, and its corners in the <svg>: left, top, right, bottom."""

    across: str
    lines: Sequence[Line]
    corners: tuple[float, float, float, float]


ROWS = 12
"""At most so many rows of a table of a chart's values."""


def chart(svg: str, plotted: Plotted) -> str:
    """A chart whose values are shown where the pointer or the keyboard is; without a script as a table below it."""
    lines = [
        {
            "n": printable(line.name),
            "c": line.colour,
            "p": line.points,
            **({"level": 1} if line.level else {}),
        }
        for line in plotted.lines
        if line.points
    ]
    if not any("level" not in line for line in lines):
        return svg
    data = {"x": plotted.across, "lines": lines, "box": plotted.corners}
    packed = escape(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    tip = "<output hidden></output>"
    return (
        f'<div class="chart" role="group" aria-label="values, with the arrow keys" data-lines="{packed}">'
        f"{svg}{tip}{_values(plotted)}</div>"
    )


def _values(plotted: Plotted) -> str:
    """Some of a chart's values as a table that is folded away."""
    curves = [{x: y for _, _, x, y in line.points} for line in plotted.lines if not line.level]
    places = list(dict.fromkeys(x for curve in curves for x in curve))
    places.sort(key=float)
    every = max(1, -(-len(places) // ROWS))
    kept = [x for k, x in enumerate(places) if (len(places) - 1 - k) % every == 0]
    values = [
        (
            line.name,
            {x: line.points[0][3] for x in kept} if line.level else {x: y for _, _, x, y in line.points},
        )
        for line in plotted.lines
        if line.points
    ]
    rows = [[x, *(known.get(x, "") for _, known in values)] for x in kept]
    return f"<details><summary>values</summary>{table([plotted.across, *(n for n, _ in values)], rows)}</details>"


def card(title: str, content: str, *, wide: bool = False) -> str:
    """A box with a small heading; content is HTML."""
    return f'<div class="card{" wide" if wide else ""}"><h3>{text(title)}</h3>{content}</div>'


def cards(parts: Iterable[str], *, large: bool = False) -> str:
    """Boxes side by side where there is room. large: boxes that need more of it."""
    joined = "\n".join(parts)
    return f'<div class="cards{" large" if large else ""}">\n{joined}\n</div>' if joined else ""


def folded(title: str, words: str) -> str:
    """Preformatted text that is hidden until its title is clicked."""
    return f"<details><summary>{text(title)}</summary><pre>{text(words)}</pre></details>"


def image(uri: str, alternative: str) -> str:
    """An image from a data URI, which was checked when it was read."""
    return f'<img src="{escape(uri)}" alt="{text(alternative)}" loading="lazy">'


def _cell(tag: str, index: int, value: str) -> str:
    return f"<{tag}>{text(value)}</{tag}>" if index == 0 else f'<{tag} class="n">{text(value)}</{tag}>'
