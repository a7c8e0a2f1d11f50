"""The site of `kdcli docs`: static HTML of the pages in kdcli/pages and of all that `kdcli explain` knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from kdcli.codes import CODES
from kdcli.disk import entries_like, text_in, writing
from kdcli.losses import LOSSES, loss_of
from kdcli.losses.parts.describe import describe
from kdcli.reference.keys import KeyPage, argument_meaning, key_pages
from kdcli.reference.methods import fragment, method_fragment, method_of
from kdcli.reference.words import TypePage, argument_names, arguments_named, subjects, types_named
from kdcli.spec.check.signatures import signature

PAGES = Path(__file__).parents[1] / "pages"
INDEX = "search-index.js"
"""Beside index.html in every site; by it a folder is known as one that kdcli made."""

MADE = ("index.html", INDEX, "site.css", "site.js", "words", "commands", "lists", "samples.html")
PLURALS = {"loss": "losses", "batch function": "batch functions"}
NO_LINK = frozenset({"base"})
"""Losses and methods whose name in backticks often means something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePage:
    """One page. path: in the site, with slashes; body: HTML; found: (title, anchor, text) of what a search finds."""

    path: str
    title: str
    kind: str
    body: str
    found: tuple[tuple[str, str, str], ...] = ()
    group: str = ""
    names: tuple[str, ...] = ()

    @property
    def up(self) -> str:
        """What leads from this page to the site's folder."""
        return "../" * self.path.count("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPage:
    """One command in words: rows are (how it is written, default, what it does)."""

    name: str
    help: str
    usage: str
    rows: tuple[tuple[str, str, str], ...]


def write_site(folder: Path, commands: Sequence[CommandPage], samples: Mapping[str, tuple[str, str]]) -> int:
    """Write all pages into a folder and return how many. samples: by name the summary and the text of a spec."""
    pages = site_pages(commands, samples)
    contents = _contents(pages)
    linked = _Linker(pages)
    rows = [
        [title, page.path + anchor, page.kind, text]
        for page in pages
        for title, anchor, text in (page.found or ((page.title, "", ""),))
    ]
    index = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    files = {page.path: _document(replace(page, body=linked(page)), contents) for page in pages}
    files |= {name: text_in(PAGES / name) for name in ("site.css", "site.js")}
    files[INDEX] = f"window.KDCLI_INDEX={index};\n"
    with writing(folder):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return len(pages)


def site_pages(commands: Sequence[CommandPage], samples: Mapping[str, tuple[str, str]]) -> list[SitePage]:
    """Every page: the written ones first, in the order of index.md, then commands, samples, lists and words."""
    words = _word_pages()
    return [
        *written_pages(),
        *(_command(one) for one in commands),
        _commands_list(commands),
        _samples(samples),
        *_lists(words),
        *words,
    ]


def written_pages(folder: Path = PAGES) -> list[SitePage]:
    """The Markdown files of a folder as pages, grouped as index.md lists them; others come last, under `More`."""
    index = text_in(folder / "index.md")
    groups: dict[str, str] = {}
    for part in re.split(r"^## ", index, flags=re.M)[1:]:
        title, _, text = part.partition("\n")
        groups |= dict.fromkeys(re.findall(r"\]\(([\w-]+)\.md", text), title.strip())
    others = sorted({path.stem for path in entries_like(folder, "*.md")} - {"index", *groups})
    made = [_written(folder / "index.md", "")]
    return made + [_written(folder / f"{name}.md", groups.get(name, "More")) for name in (*groups, *others)]


def _written(path: Path, group: str) -> SitePage:
    """One Markdown file. What stands between `<!--` and `-->` is for tests and left out."""
    text = re.sub(r"<!--.*?-->\n?", "", text_in(path), flags=re.S)
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    found: list[tuple[str, str, str]] = []
    title = path.stem
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            words = re.sub(r"[`*]", "", following.content)
            anchor = slug(words)
            token.attrSet("id", anchor)
            title = words if token.tag == "h1" else title
            found.append((words, "" if token.tag == "h1" else f"#{anchor}", ""))
        elif token.type in ("inline", "fence") and found:
            name, anchor, before = found[-1]
            found[-1] = (name, anchor, f"{before} {token.content}".strip())
        for child in token.children or ():
            href = child.attrGet("href") if child.type == "link_open" else None
            if isinstance(href, str):
                child.attrSet("href", re.sub(r"^([\w-]+)\.md(?=#|$)", r"\1.html", href))
        if token.type == "fence":
            language, _, name = token.info.partition(" ")
            caption = f"<figcaption>{escape(name)}</figcaption>" if name else ""
            token.type, token.content = (
                "html_block",
                f"<figure>{caption}{_code(token.content, language)}</figure>\n",
            )
    shown = [
        (f"{title}: {name}" if anchor else title, anchor, _short(words)) for name, anchor, words in found
    ]
    return SitePage(
        path=f"{path.stem}.html",
        title=title,
        kind="page",
        body=re.sub(
            r"<table>.*?</table>", r'<div class="scroll">\g<0></div>', _rendered(reader, tokens), flags=re.S
        ),
        found=tuple(shown),
        group=group,
    )


def _rendered(reader: MarkdownIt, tokens: Sequence[Any]) -> str:
    return str(reader.renderer.render(list(tokens), reader.options, {}))


def slug(heading: str) -> str:
    """A heading as an anchor: as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def _code(text: str, language: str) -> str:
    """A block of code, in colours where its language is known."""
    try:
        lexer = get_lexer_by_name({"sh": "bash", "console": "bash"}.get(language, language))
    except ClassNotFound:
        lexer = None
    if lexer is None or language == "text":
        return f'<pre tabindex="0" class="seen"><code>{escape(text)}</code></pre>'
    inner = str(highlight(text, lexer, HtmlFormatter(nowrap=True)))
    return f'<pre tabindex="0"><code>{inner}</code></pre>'


def prose(text: str) -> str:
    """Plain paragraphs as HTML; what stands in backticks as code."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return "".join(f"<p>{_inline(part)}</p>" for part in paragraphs)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML."""
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _short(text: str, limit: int = 600) -> str:
    return " ".join(re.sub(r"[`*|]", " ", text).split())[:limit]


def _link(path: str, name: str) -> str:
    return f'<a href="{path}">{escape(name)}</a>'


def _word_path(word: str) -> str:
    """Where a word's page is. Words that differ by case alone (`fgd`, `FGD`) share one, as on a disk without case."""
    return f"words/{word.lower()}.html"


def _word_pages() -> list[SitePage]:
    """A page for each word of `kdcli explain`: codes, keys, types, arguments."""
    parts: dict[str, list[tuple[str, str, str, str]]] = {}

    def add(word: str, kind: str, summary: str, html: str) -> None:
        parts.setdefault(word.lower(), []).append((word, kind, summary, html))

    for code, explanation in CODES.items():
        title = f"<p><strong>{_inline(explanation.title)}</strong></p>"
        example = f'<pre tabindex="0"><code>{escape(explanation.example)}</code></pre>'
        add(code, "code", explanation.title, title + prose(explanation.why) + example)
    for key in key_pages().values():
        add(key.path, "key", key.meaning, _key(key))
    for names in (names for kind, names in subjects().items() if kind not in ("code", "key")):
        for name in names:
            for one in types_named(name):
                if (name, one.kind) not in [(word, kind) for word, kind, *_ in parts.get(name.lower(), [])]:
                    add(name, one.kind, one.summary, _type(one))
    for name in argument_names():
        meanings = arguments_named(name)
        rows = [
            (
                _inline(meaning),
                ", ".join(
                    f"{kind} {_link(f'../{_word_path(of)}', of)}" if "." not in of else of
                    for kind, of in types
                ),
            )
            for meaning, types in meanings.items()
        ]
        add(name, "argument", next(iter(meanings), ""), _table(("what it is", "of"), rows))
    return [
        SitePage(
            path=_word_path(entries[0][0]),
            title=" · ".join(dict.fromkeys(word for word, *_ in entries)),
            kind=", ".join(dict.fromkeys(kind for _, kind, *_ in entries)),
            body="\n".join(
                f"<h1>{escape(word)} <small>{kind}</small></h1>\n{html}" for word, kind, _, html in entries
            ),
            found=tuple((word, "", _short(summary)) for word, _, summary, _ in entries),
            names=tuple(dict.fromkeys(word for word, *_ in entries)),
        )
        for entries in parts.values()
    ]


def _key(page: KeyPage) -> str:
    known = key_pages()
    above = page.path.rpartition(".")[0]
    below = [
        _link(f"../{_word_path(path)}", key) if (path := f"{page.path}.{key}") in known else escape(key)
        for key in page.keys
    ]
    rows = [
        ("takes", escape(page.takes)),
        (
            "default",
            f"<code>{escape(page.default)}</code>" if page.default is not None else "has to be given",
        ),
        ("keys", ", ".join(below)),
        ("stands in", _link(f"../{_word_path(above)}", above) if above in known else ""),
    ]
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    example = _code(page.example, "yaml") if page.example else ""
    return f"{prose(page.meaning)}<dl>{facts}</dl>{example}"


def _type(page: TypePage) -> str:
    if page.kind == "loss":
        return _loss(page.name)
    if page.kind == "mimic method":
        return _method(page.name)
    source = prose(f"{page.source}, as torch documents it.") if page.source else ""
    return (
        source
        + prose(page.summary)
        + prose(page.details)
        + _arguments(
            (one.name, one.takes, None if one.required else one.default, one.meaning)
            for one in page.arguments
        )
    )


def _arguments(rows: Iterable[tuple[str, str, object, str]]) -> str:
    """The table of a type's arguments; a default of None is none."""
    made = [
        (
            f"<code>{escape(name)}</code>",
            escape(takes),
            f"<code>{escape(str(default))}</code>",
            _inline(meaning),
        )
        for name, takes, default, meaning in rows
    ]
    return _table(("kwargs", "type", "default", "what it is"), made) if made else ""


def _loss(name: str) -> str:
    loss = describe(name)
    arxiv = f'<a href="https://arxiv.org/abs/{loss.arxiv}">arXiv:{loss.arxiv}</a>' if loss.arxiv else ""
    facts = [
        ("kind", loss.kind),
        ("needs", escape(", ".join(loss.needs))),
        ("layers", _inline(loss.taps or "")),
        ("source", ", ".join(part for part in (escape(loss.paper), arxiv) if part)),
    ]
    takes = signature(loss_of(name))
    rows = (
        (
            one.name,
            one.annotation,
            one.default,
            (takes and argument_meaning("losses", name, one.name, takes)) or "",
        )
        for one in loss.options
    )
    shown = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts if value)
    text = f"{prose(loss.summary)}{prose(loss.details)}<dl>{shown}</dl>"
    return text + _arguments(rows) + _code(fragment(name), "yaml")


def _method(name: str) -> str:
    method = method_of(name)
    losses = [
        (f"<code>{own}</code>", _link(f"../{_word_path(loss.type)}", loss.type))
        for own, loss in method.record.losses.items()
    ]
    shown = _table(("its losses (under <code>cfgs</code>)", "type"), losses) if losses else ""
    options = _arguments((one.name, one.type_text or "", one.default, one.meaning) for one in method.options)
    return (
        prose(method.summary) + prose(method.details) + shown + options + _code(method_fragment(name), "yaml")
    )


def _command(command: CommandPage) -> SitePage:
    rows = [
        (f"<code>{escape(form)}</code>", escape(default), _inline(text))
        for form, default, text in command.rows
    ]
    usage = f'<pre tabindex="0"><code>{escape(command.usage)}</code></pre>'
    table = _table(("argument", "default", "what it does"), rows)
    return SitePage(
        path=f"commands/{command.name}.html",
        title=f"kdcli {command.name}",
        kind="command",
        body=f"<h1>kdcli {command.name}</h1>\n{prose(command.help)}{usage}{table}",
        found=(
            (
                f"kdcli {command.name}",
                "",
                _short(" ".join([command.help, *(row[0] for row in command.rows)])),
            ),
        ),
    )


def _commands_list(commands: Sequence[CommandPage]) -> SitePage:
    rows = [
        (_link(f"../commands/{one.name}.html", f"kdcli {one.name}"), _inline(one.help)) for one in commands
    ]
    body = f"<h1>Commands</h1>\n{_table(('command', 'what it does'), rows)}"
    return SitePage(path="lists/commands.html", title="Commands", kind="list", body=body, group="Reference")


def _samples(samples: Mapping[str, tuple[str, str]]) -> SitePage:
    parts = [
        f'<details id="{name}"><summary><code>{name}</code> {_inline(summary)}</summary>{_code(text, "yaml")}</details>'
        for name, (summary, text) in samples.items()
    ]
    return SitePage(
        path="samples.html",
        title="Sample specs",
        kind="list",
        body="<h1>Sample specs</h1>\n<p><code>kdcli init NAME [DIR]</code> copies one.</p>\n"
        + "\n".join(parts),
        found=(
            ("Sample specs", "", ""),
            *((name, f"#{name}", summary) for name, (summary, _) in samples.items()),
        ),
        group="Reference",
    )


def _lists(words: Sequence[SitePage]) -> list[SitePage]:
    """For each kind of word the list of all, with a sentence each."""
    summaries = {
        (name, kind): text for page in words for name, _, text in page.found for kind in page.kind.split(", ")
    }
    kinds = {**subjects(), "key": list(key_pages()), "argument": argument_names()}
    made = []
    for kind, names in kinds.items():
        title = PLURALS.get(kind, f"{kind}s").capitalize()
        rows = [
            (_link(f"../{_word_path(name)}", name), _inline(summaries.get((name, kind), "")))
            for name in names
        ]
        path = f"lists/{slug(title)}.html"
        body = f"<h1>{title}</h1>\n{_table((kind, 'what it is'), rows)}"
        made.append(SitePage(path=path, title=title, kind="list", body=body, group="Reference"))
    return made


class _Linker:
    """Makes links of what names a page: `KD422`, `trainer.ema`, `kd_loss`, `kdcli train ...` in code."""

    def __init__(self, pages: Sequence[SitePage]) -> None:
        known = {*LOSSES, *CODES, *(path for path in key_pages() if "." in path)} - NO_LINK
        self.paths = {name: page.path for page in pages for name in page.names if name in known}
        self.commands = {page.title: page.path for page in pages if page.kind == "command"}

    def __call__(self, page: SitePage) -> str:
        """The page's body with links; none to itself, none in blocks of code, headings or links."""

        def code(found: re.Match[str]) -> str:
            word = found[1]
            path = self.paths.get(word) or self.commands.get(" ".join(word.split()[:2]))
            return found[0] if path in (None, page.path) else f'<a href="{page.up}{path}">{found[0]}</a>'

        def plain(found: re.Match[str]) -> str:
            path = self.paths.get(found[0])
            return found[0] if path in (None, page.path) else f'<a href="{page.up}{path}">{found[0]}</a>'

        parts = re.split(
            r"(<pre.*?</pre>|<h\d.*?</h\d>|<a .*?</a>|<summary>.*?</summary>)", page.body, flags=re.S
        )
        for number in range(0, len(parts), 2):
            text = re.sub(r"<code>([^<]+)</code>", code, parts[number])
            inner = re.split(r"(<[^>]*>)", text)
            depth = 0
            for at, piece in enumerate(inner):
                if at % 2:
                    depth += piece.startswith(("<a ", "<code")) - piece.startswith(("</a", "</code"))
                elif depth == 0:
                    inner[at] = re.sub(r"\bKD\d{3}\b", plain, piece)
            parts[number] = "".join(inner)
        return "".join(parts)


def _contents(pages: Sequence[SitePage]) -> list[tuple[str, list[SitePage]]]:
    """The pages of the side bar, by group."""
    groups: dict[str, list[SitePage]] = {}
    for page in pages:
        if page.group:
            groups.setdefault(page.group, []).append(page)
    return list(groups.items())


def _document(page: SitePage, contents: Sequence[tuple[str, Sequence[SitePage]]]) -> str:
    """The page as a whole HTML document: title, search, side bar, body."""
    links = []
    for group, pages in contents:
        rows = "".join(
            f'<li><a href="{page.up}{one.path}"{" aria-current=page" if one.path == page.path else ""}>'
            f"{escape(one.title)}</a></li>"
            for one in pages
        )
        links.append(f"<h2>{escape(group)}</h2><ul>{rows}</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(page.title)} · kdcli</title>\n'
        f'<link rel="stylesheet" href="{page.up}site.css">\n'
        f'<script defer src="{page.up}{INDEX}"></script>\n<script defer src="{page.up}site.js"></script>\n'
        f'</head>\n<body data-up="{page.up}">\n<a class="skip" href="#main">To the text</a>\n'
        f'<header><a class="name" href="{page.up}index.html">kdcli</a><div class="search" role="search">'
        '<input type="search" id="search" placeholder="Search: a key, a code, a loss ( / )" autocomplete="off" '
        'aria-label="Search" role="combobox" aria-expanded="false" aria-controls="results">'
        '<ul id="results" role="listbox" hidden></ul></div></header>\n'
        f'<div class="frame"><nav><details><summary>Contents</summary>{"".join(links)}</details></nav>\n'
        f'<main id="main" tabindex="-1">\n{page.body}\n</main></div>\n</body>\n</html>\n'
    )
