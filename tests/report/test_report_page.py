"""report.html: complete, self-contained, safe, and absent sections absent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdcli.errors import RunError
from kdcli.records import Alarm
from kdcli.report import charts
from kdcli.report.report_page import write_report
from kdcli.report.run_files import MetricsWriter
from tests.report.run_folders import make_run, report_data

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path_factory.mktemp("runs") / "digits_kd")
    (run / "report_data.json").write_text(json.dumps(report_data()))
    return write_report(run)


class Balanced(HTMLParser):
    """Notes headings, addresses of other files and tags that were never closed."""

    VOID = ("meta", "link", "br", "img", "path", "rect", "image", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def read(page: Path) -> Balanced:
    parser = Balanced()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_every_section_is_there(full: Path) -> None:
    assert full.name == "report.html"
    assert read(full).headings == [
        "digits_kd",
        "Result",
        "Quality and cost",
        "Curves",
        "Accuracy by class",
        "Reliability",
        "Where they disagree most",
        "Detections",
        "Feature maps",
        "Which layers are alike",
        "How it was run",
    ]


def test_nothing_is_fetched(full: Path) -> None:
    page = read(full)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags and "default-src 'none'" in full.read_text()


def test_light_dark_and_phone(full: Path) -> None:
    text = full.read_text()
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert charts.INK not in text and charts.GRID not in text, "figures follow the page's colours"


def test_curves_show_the_teacher(full: Path) -> None:
    text = full.read_text()
    chart = text[text.index('aria-label="top1"') : text.index('aria-label="cross_entropy"')]
    assert "teacher0" in chart
    for title in ("total and task losses", "losses of mimic_job0", "learning rate"):
        assert f'aria-label="{title}"' in text


def test_the_same_run_gives_the_same_page(full: Path) -> None:
    before = full.read_bytes()
    assert write_report(full.parent).read_bytes() == before


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = read(write_report(make_run(tmp_path / "bare", end=False)))
    assert page.headings == ["bare", "Result", "Curves", "How it was run"]
    assert "stopped or running at step 100 of 100" in (tmp_path / "bare" / "report.html").read_text()


def test_what_went_wrong_stands_before_the_result(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = make_run(tmp_path / "bare", end=False)
    numbers = {"loss": 9.0, "start": 2.3}
    with MetricsWriter(path / "metrics.jsonl") as writer:
        writer.write(
            Alarm(message="KD780: <high>", step=60, code="KD780", name="high", numbers=numbers, remedy="r")
        )
    page = write_report(path)
    assert read(page).headings == ["bare", "What went wrong", "Result", "Curves", "How it was run"]
    assert "KD780: &lt;high&gt;" in page.read_text()


def test_what_users_write_is_escaped(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evil = "<script>alert(1)</script>$x_1$\x1b"
    run = make_run(tmp_path / "a <b>", spec={"note": evil})
    data = report_data()
    data["comparison"][0]["network"] = evil
    data["disagreements"][0]["label"] = evil
    data["class_accuracy"]["classes"][0] = evil
    data["cka"][0]["teacher"] = evil
    data["detections"][0]["boxes"]["student"][0][4] = evil
    data["reliability"][evil] = data["reliability"].pop("student")
    (run / "report_data.json").write_text(json.dumps(data))
    page = write_report(run)
    assert "script" not in read(page).tags and "<b>" not in read(page).headings
    assert "\x1b" not in page.read_text()


@pytest.mark.parametrize("place", ["disagreements", "detections", "features"])
def test_images_are_data_and_nothing_else(tmp_path: Path, place: str) -> None:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run")
    for image in ("https://example.org/x.png", 'data:image/png;base64,AA" onload="x', "data:text/html,x", 7):
        data = report_data()
        row = data[place][0]["rows"][0] if place == "features" else data[place][0]
        row["image"] = image
        (run / "report_data.json").write_text(json.dumps(data))
        with pytest.raises(RunError, match=f"KD752: `{place}` in .* an image that is no PNG"):
            write_report(run)


def test_without_matplotlib_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(charts, "import_module", refuse)
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError) as caught:
        write_report(run)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "KD755" and "kdcli[report]" in (diagnostic.help or "")
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_matplotlib_is_imported_late() -> None:
    modules = "kdcli.report.report_page, kdcli.report.compare_runs"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    import sys

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_thousand_classes_and_odd_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        step = {"kind": "step", "step": 101, "losses": {"task.x": "NaN"}, "total": "Infinity", "lr": 0.1}
        file.write(json.dumps(step) + "\n")
    data = report_data()
    data["class_accuracy"] = {
        "classes": [f"类 {i}" for i in range(1000)],
        "networks": {"student": [i / 1000 for i in range(1000)], "teacher0": [0.5] * 1000},
    }
    (run / "report_data.json").write_text(json.dumps(data))
    text = write_report(run).read_text()
    assert "The 30 classes on which they differ most, of 1000." in text and "类 999" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("size", ["390,3000", "1280,3000"])
def test_chromium_opens_it_without_a_word_on_the_console(full: Path, tmp_path: Path, size: str) -> None:
    assert CHROMIUM is not None
    shot = tmp_path / "shot.png"
    ran = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={size}",
            f"--screenshot={shot}",
            full.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0 and shot.stat().st_size > 20_000
    assert not re.search(r"CONSOLE|Content Security Policy", ran.stderr)
