"""The site of `kdcli docs`: every word has a page, every link leads somewhere, no network is needed, phones fit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from kdcli.cli import COMMANDS, app
from kdcli.commands.help_options import DocsOptions
from kdcli.commands.reference import docs
from kdcli.commands.samples import sample_specs
from kdcli.errors import UsageError
from kdcli.reference.words import argument_names, words
from kdcli.report.site import INDEX, PAGES, prose, slug, written_pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    docs(DocsOptions(folder=folder))
    return folder


class Page(HTMLParser):
    """What a page links to, loads, and has as anchors; whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.links += [known[name] or "" for name in ("href", "src") if name in known]
        self.anchors |= {known["id"] or ""} if "id" in known else set()
        if tag not in ("meta", "link", "input", "br", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"


@cache
def parsed(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def pages_of(site: Path) -> Iterator[Path]:
    yield from sorted(site.rglob("*.html"))


@pytest.mark.slow
def test_every_word_of_explain_has_a_page(site: Path) -> None:
    known = [*words(), *argument_names()]
    assert len(known) > 800
    for word in known:
        text = (site / "words" / f"{word.lower()}.html").read_text()
        assert f"<h1>{word} <small>" in text, word
    titles = {row[0] for row in index_of(site)}
    assert titles >= {*known, *(f"kdcli {name}" for name in COMMANDS), *sample_specs()}


@pytest.mark.slow
def test_a_page_says_what_explain_says(site: Path) -> None:
    key = (site / "words/trainer.ema.html").read_text()
    assert "A moving average of the student" in key and 'href="../words/trainer.ema.kwargs.html"' in key
    loss = (site / "words/kd_loss.html").read_text()
    assert "https://arxiv.org/abs/1503.02531" in loss and "Temperature that logits are divided by" in loss
    # The loss and the method differ by case alone: one page has both.
    both = (site / "words/fgd.html").read_text()
    assert "<h1>FGD <small>mimic method" in both and "<h1>fgd <small>loss" in both
    code = (site / "words/kd422.html").read_text()
    assert "no such layer or output" in code


@pytest.mark.slow
def test_a_command_has_all_its_options(site: Path) -> None:
    for name in COMMANDS:
        text = (site / f"commands/{name}.html").read_text()
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        flags = {flag for one in command.params for flag in one.opts if flag.startswith("--")}
        missing = {flag for flag in flags - {"--help"} if flag not in text}
        assert not missing, (name, missing)
    train = (site / "commands/train.html").read_text()
    assert "kdcli train SPEC [KEY=VALUE]... [OPTIONS]" in train


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path) -> None:
    broken = []
    for path in pages_of(site):
        page = parsed(path)
        assert page.open == [], path
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and target.is_relative_to(site.resolve() if parts.path else site)
            if not there or (parts.fragment and parts.fragment not in parsed(target).anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.slow
def test_nothing_is_fetched(site: Path) -> None:
    """Other hosts are only linked to; scripts and styles are files beside the page."""
    for path in pages_of(site):
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"([^\"]*)", path.read_text())
        assert all(not urlsplit(one).scheme or one == "data:," for one in loaded), path
    for name in ("site.css", "site.js"):
        assert not re.search(r"https?://|@import|fetch\(|url\(", (site / name).read_text())


def index_of(site: Path) -> list[list[str]]:
    text = (site / INDEX).read_text().removeprefix("window.KDCLI_INDEX=").removesuffix(";\n")
    rows: list[list[str]] = json.loads(text)
    return rows


@pytest.mark.slow
def test_what_a_search_finds_is_there(site: Path) -> None:
    for title, path, kind, _ in index_of(site):
        name, _, anchor = path.partition("#")
        assert (site / name).is_file() and title and kind
        assert not anchor or anchor in parsed(site / name).anchors


def test_written_pages_are_grouped_by_the_index(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text(
        "# Start\n\n## Tutorials\n\n- [A](a.md)\n\n## More to know\n\n- [B](b.md#x)\n"
    )
    for name in ("a", "b", "late"):
        (tmp_path / f"{name}.md").write_text(
            f"# Page {name}\n\nSee [A](a.md).\n\n<!-- test data: x -->\n\n## Then `this`\n"
        )
    pages = {page.path: page for page in written_pages(tmp_path)}
    assert {name: page.group for name, page in pages.items()} == {
        "index.html": "",
        "a.html": "Tutorials",
        "b.html": "More to know",
        "late.html": "More",
    }
    body = pages["late.html"].body
    assert 'href="a.html"' in body and "test data" not in body and '<h2 id="then-this">' in body
    assert pages["late.html"].found[-1][:2] == ("Page late: Then this", "#then-this")


def test_text_is_escaped() -> None:
    assert prose("a `<b>` & c") == "<p>a <code>&lt;b&gt;</code> &amp; c</p>"
    assert slug("What you `have`, and why") == "what-you-have-and-why"


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        docs(DocsOptions(folder=tmp_path))
    with pytest.raises(UsageError, match="is a file"):
        docs(DocsOptions(folder=tmp_path / "mine.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_site_is_written_anew(tmp_path: Path) -> None:
    """Pages that are no more are gone, files that somebody laid there stay."""
    docs(DocsOptions(folder=tmp_path / "site"))
    (tmp_path / "site/words/old.html").write_text("old")
    (tmp_path / "site/mine.txt").write_text("mine")
    docs(DocsOptions(folder=tmp_path / "site"))
    assert not (tmp_path / "site/words/old.html").exists() and (tmp_path / "site/mine.txt").exists()


def test_markdown_pages_are_all_in_the_index() -> None:
    listed = set(re.findall(r"\]\(([\w-]+)\.md", (PAGES / "index.md").read_text()))
    assert {path.stem for path in PAGES.glob("*.md")} - {"index", "python"} <= listed


def test_links_of_the_written_pages_lead_to_headings() -> None:
    """As they stand in the repository, where a forge shows them."""
    for path in PAGES.glob("*.md"):
        for name, anchor in re.findall(r"\]\(([\w-]*)(?:\.md)?#?([\w-]*)\)", path.read_text()):
            target = (PAGES / f"{name}.md" if name else path).read_text()
            headings = {slug(one) for one in re.findall(r"^#+ (.*)$", target, re.M)}
            assert not anchor or anchor in headings, f"{path.name}: {name}#{anchor}"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_pages_fit_the_window(site: Path, width: int, tmp_path: Path) -> None:
    """In headless Chromium: no page is wider than its window, a search finds, and no script fails."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    # A frame of this width, for a headless window is never narrower than 500 pixels.
    names = ["index.html", "own-images.html", "words/trainer.html", "lists/keys.html", "commands/train.html"]
    probe = """
    <script>
    const names = NAMES, said = [];
    let left = names.length;
    for (const name of names) {
      const frame = document.createElement("iframe");
      frame.style = "width:WIDTHpx;height:800px;border:0";
      frame.onload = () => {
        const page = frame.contentDocument;
        const box = page.getElementById("search");
        box.value = "kd_loss";
        box.dispatchEvent(new Event("input"));
        const first = page.querySelector("#results [aria-selected=true] a");
        const wide = page.documentElement.scrollWidth;
        said.push(name + " " + wide + " " + (first ? first.getAttribute("href") : "nothing"));
        if (--left === 0) document.getElementById("said").textContent = said.join("\\n");
      };
      frame.src = "site/" + name;
      document.body.append(frame);
    }
    </script>
    """
    probe = probe.replace("NAMES", json.dumps(names)).replace("WIDTH", str(width))
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "probe.html").write_text(f"<body><pre id=said></pre>{probe}</body>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    done = subprocess.run(
        [
            chromium,
            *options,
            f"--user-data-dir={tmp_path}/profile",
            "--virtual-time-budget=20000",
            "--dump-dom",
            (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<pre id=\"said\">(.*?)</pre>", done.stdout, re.S)
    assert found is not None and found[1], done.stdout[-2000:] + done.stderr[-2000:]
    rows = [line.split() for line in found[1].splitlines()]
    assert {row[0] for row in rows} == set(names)
    for name, wide, first in rows:
        assert int(wide) <= width, f"{name} is {wide} pixels wide in a window of {width}"
        assert first.endswith("words/kd_loss.html")


def test_an_absent_library_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    monkeypatch.delitem(sys.modules, "kdcli.report.site", raising=False)
    with pytest.raises(UsageError, match="markdown_it is not installed"):
        docs(DocsOptions(folder=tmp_path / "site"))
