"""report.html: complete, self-contained, safe, and absent sections absent."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdcli.errors import RunError
from kdcli.records import Alarm, Evaluation, Notice
from kdcli.report import charts, report_page
from kdcli.report.report_page import write_report
from kdcli.report.run_files import MetricsWriter
from tests.report.run_folders import make_run, report_data

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without curves, which take most of the time."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report_page, "run_curves", lambda run, baseline: {})


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
        "Student and teacher",
        "Curves",
        "Average precision by class",
        "Which classes are confused",
        "Worst classes",
        "Accuracy by class",
        "Reliability",
        "Where they disagree most",
        "Detections",
        "Features",
        "Which layers are alike",
        "How it was run",
    ]


def test_nothing_is_fetched(full: Path) -> None:
    page = read(full)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "default-src 'none'" in full.read_text()


def test_no_script_runs_but_the_page_s_own(full: Path) -> None:
    text = full.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{seal}'" in text
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")


def test_light_dark_and_phone(full: Path) -> None:
    text = full.read_text()
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert charts.INK not in text and charts.GRID not in text, "figures follow the page's colours"


def charts_of(page: Path) -> dict[str, dict[str, Any]]:
    """What the page's script reads of each chart, by the chart's title."""
    found = re.findall(r'data-lines="([^"]*)"><svg role="img" aria-label="([^"]*)"', page.read_text())
    return {html.unescape(title): json.loads(html.unescape(lines)) for lines, title in found}


def test_curves_are_read_by_value(full: Path) -> None:
    drawn = charts_of(full)
    accuracy = drawn["top-1 accuracy, %"]
    student, teacher = accuracy["lines"]
    assert [point[2:] for point in student["p"]] == [
        ["20", "58.00"],
        ["40", "66.00"],
        ["60", "74.00"],
        ["80", "82.00"],
        ["100", "90.00"],
    ]
    assert (teacher["n"], teacher["level"], teacher["p"][0][3]) == ("teacher0", 1, "98.50")
    # Equal steps of the values are equal steps in the picture, and the level lies where its value does.
    downs = [point[1] for point in student["p"]]
    assert [downs[k] - downs[k + 1] for k in range(4)] == pytest.approx(
        [(downs[0] - downs[4]) / 4] * 4, abs=0.2
    )
    assert teacher["p"][0][1] == pytest.approx(downs[4] + (98.5 - 90) / 8 * (downs[4] - downs[3]), abs=0.5)
    left, top, right, bottom = accuracy["box"]
    assert all(left <= x <= right and top <= y <= bottom for x, y, *_ in student["p"])
    assert {"total and task losses", "losses of mimic_job0", "learning rate"} <= drawn.keys()


def test_a_point_of_a_chart_lies_where_it_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    drawn = charts.readable(
        lambda axes: axes.plot([0, 1, 2], [1.0, 5.0, 3.0], label="a", color="#112233"), title="t"
    )
    (line,) = json.loads(html.unescape(re.findall(r'data-lines="([^"]*)"', drawn)[0]))["lines"]
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: #112233', drawn)
    places = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert [tuple(point[:2]) for point in line["p"]] == [pytest.approx(place, abs=0.1) for place in places]


def test_curves_are_read_without_a_script_too(full: Path) -> None:
    text = full.read_text()
    chart = text[text.index('aria-label="top-1 accuracy, %"') :]
    table = chart[chart.index("<details><summary>values") : chart.index("</details>")]
    assert table.count("<tr>") == 6 and '<td>100</td><td class="n">90.00</td>' in table


def test_one_table_in_words(full: Path) -> None:
    text = full.read_text()
    result = text[text.index('id="student-and-teacher"') : text.index('id="curves"')]
    assert result.count("<table") == 1
    for words in (
        "top-1 accuracy, %",
        "cross-entropy, nats",
        "same class as the student, %",
        "9,999",
        "120 k",
    ):
        assert words in result
    assert "cross_entropy" not in result and "same_top1" not in result
    said = "The student reaches 90.0 of the teacher&#x27;s 98.5 (top-1 accuracy, %): 12x fewer parameters, 4.0x faster."
    assert said in text
    assert "of the first 360 of 450 test images" in text


@pytest.mark.usefixtures("without_curves")
def test_who_and_what_and_on_which_data(tmp_path: Path) -> None:
    spec = {
        "net": [{"name": "model", "type": "resnet18"}],
        "teacher0": [{"name": "model", "type": "resnet50"}],
        "mimic": {"cfgs": {"loss": {"type": "kd_loss"}}, "student": {"mimic_name": ["logits"]}},
        "dataset": {"train": {"dataset": {"type": "digits", "kwargs": {"split": "train"}}}},
    }
    text = write_report(make_run(tmp_path / "run", spec=spec)).read_text()
    for name, value in (
        ("student", "resnet18"),
        ("teacher0", "resnet50"),
        ("method", "kd_loss on logits"),
        ("training data", "digits (split train)"),
        ("seed", "0"),
        ("versions", "kdcli 0.1.0 · torch 2.14.1"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text


def test_a_baseline_stands_beside_and_in_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    alone = make_run(tmp_path / "alone", top1=88.75, spec={"runtime": {"runner": {"type": "base"}}})
    page = write_report(make_run(tmp_path / "kd"), alone)
    accuracy = charts_of(page)["top-1 accuracy, %"]
    assert [line["n"] for line in accuracy["lines"]] == ["student", "baseline alone", "teacher0"]
    text = page.read_text()
    assert "Trained alone (baseline alone) it reaches 88.8, 1.2 less." in text
    assert (
        '<th class="n">baseline alone</th>' in text and "baseline alone: trained without a teacher." in text
    )


def test_a_baseline_on_other_data_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        make_run(tmp_path / name, spec={"dataset": {"test": {"dataset": {"type": name}}}})
        for name in ("digits", "coco")
    ]
    with pytest.raises(RunError, match=r"KD855: .* is no baseline of .*: test data: digits, not coco"):
        write_report(*runs)


@pytest.mark.usefixtures("without_curves")
def test_what_a_constant_costs_stands_beside_the_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", constants={"mimic_job0.teacher0.l2_loss": 1.2})
    (row,) = re.findall(r"<tr><td>mimic_job0.teacher0.l2_loss</td>.*?</tr>", write_report(run).read_text())
    assert re.findall(r"<td[^>]*>([^<]*)", row)[1:] == ["0.3000", "1.2000", "25 %"]


def test_a_run_without_labels_has_words_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run", epochs=0, end=False)
    (run / "metrics.jsonl").write_text("")
    metrics = {"distill_loss": 0.21, "explained_variance": 0.834, "explained_variance.job.layer4": 0.8}
    with MetricsWriter(run / "metrics.jsonl") as writer:
        for step in (10, 20):
            writer.write(
                Evaluation(
                    step=step, epoch=0, network="student", metrics=metrics, primary="explained_variance",
                    best=True, seconds=1.0,
                )
            )  # fmt: skip
    page = write_report(run)
    text = page.read_text()
    assert "The student explains 83.4 % of the variance of the teacher&#x27;s features." in text
    assert "<td>distillation loss</td>" in text
    assert list(charts_of(page)) == ["explained variance of the teacher's features", "distillation loss"]
    assert "explained variance of the teacher&#x27;s features: job.layer4" in text


@pytest.mark.usefixtures("without_curves")
def test_it_says_what_is_missing(full: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "The networks have not been run for this report" in write_report(run).read_text()
    data = report_data()
    for section in ("measured", "confusion", "worst_classes", "precision", "detections"):
        del data[section]
    (run / "report_data.json").write_text(json.dumps(data))
    said = "An older kdcli collected the figures: confusion matrix and worst classes are missing."
    assert said in write_report(run).read_text()
    assert "What is missing here" not in full.read_text()
    (run / "report_data.json").write_text(json.dumps({"version": 1, "primary": "top1", "cka": data["cka"]}))
    assert "What is missing here" not in write_report(run).read_text(), (
        "of several heads there is no one answer"
    )


def test_the_page_is_small(full: Path) -> None:
    assert full.stat().st_size < 250_000


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(full: Path) -> None:
    before = full.read_bytes()
    assert write_report(full.parent).read_bytes() == before


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = read(write_report(make_run(tmp_path / "bare", end=False)))
    assert page.headings == [
        "bare",
        "Student and teacher",
        "Curves",
        "What is missing here",
        "How it was run",
    ]
    assert "stopped or running at step 100 of 100" in (tmp_path / "bare" / "report.html").read_text()


def test_what_went_wrong_stands_before_the_result(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = make_run(tmp_path / "bare", end=False)
    numbers = {"loss": 9.0, "start": 2.3}
    with MetricsWriter(path / "metrics.jsonl") as writer:
        writer.write(
            Alarm(message="KD780: <high>", step=60, code="KD780", name="high", numbers=numbers, remedy="r")
        )
        writer.write(Notice(message="a warning of another kind", level="warning"))
        for step in (70, 80):
            writer.write(
                Alarm(message="KD781: low", step=step, code="KD781", name="low", numbers=numbers, remedy="r")
            )
    page = write_report(path)
    assert read(page).headings[:3] == ["bare", "Warnings of the run", "Student and teacher"]
    text = page.read_text()
    assert "Step 60: KD780: &lt;high&gt;" in text and "<code>kdcli explain KD780</code>" in text
    assert "Step 70: KD781: low And once more, to step 80." in text and "a warning of another kind" in text


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
    assert page.read_text().count("<script") == 1 and "<b>" not in read(page).headings
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


MEASURE = """
<!DOCTYPE html><meta charset="utf-8"><iframe style="border:0;width:WIDTHpx;height:40000px" srcdoc="PAGE"></iframe>
<pre id="found"></pre><script>
onload = () => {
  const inner = document.querySelector('iframe'), page = inner.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll('body *')].filter(one => !one.closest('.scroll, pre, svg') &&
    one.getBoundingClientRect().right > root.clientWidth + 1).map(one => one.tagName + '.' + one.className);
  const chart = page.querySelector('.chart'), tip = chart.querySelector('output');
  const press = key => chart.dispatchEvent(new inner.contentWindow.KeyboardEvent('keydown', {key, bubbles: true}));
  const read = [];
  chart.dispatchEvent(new inner.contentWindow.FocusEvent('focus')); read.push(tip.innerText);
  press('Home'); read.push(tip.innerText); press('ArrowRight'); read.push(tip.innerText);
  const inside = tip.getBoundingClientRect(), area = chart.getBoundingClientRect();
  const kept = inside.left >= area.left - 1 && inside.right <= area.right + 1;
  press('Escape');
  const svg = chart.querySelector('svg').getBoundingClientRect();
  chart.querySelector('svg').dispatchEvent(new inner.contentWindow.PointerEvent('pointermove',
    {clientX: svg.left + 2, clientY: svg.top + 20, pointerType: 'mouse', bubbles: true}));
  read.push(tip.innerText);
  const cells = [...page.querySelectorAll('.result')][0].rows[1].cells;
  document.getElementById('found').textContent = JSON.stringify({width: inner.contentWindow.innerWidth,
    scroll: root.scrollWidth, wide, read, kept, beside: cells[2].getBoundingClientRect().right});
};
</script>
"""


def browse(page: str, width: int, folder: Path) -> tuple[dict[str, Any], str]:
    """What a browser finds in a page of so many pixels, and what it said."""
    assert CHROMIUM is not None
    # A browser's window is no narrower than 500 pixels; a frame in it is.
    framed = MEASURE.replace("WIDTH", str(width)).replace("PAGE", html.escape(page))
    (folder / "frame.html").write_text(framed)
    switches = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
    ]
    ran = subprocess.run(
        [
            CHROMIUM,
            *switches,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={max(500, width + 40)},1000",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0
    found = re.findall(r'<pre id="found">(.*?)</pre>', ran.stdout, re.DOTALL)
    return json.loads(html.unescape(found[0])), ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_a_browser_shows_it_whole_and_reads_its_curves(full: Path, tmp_path: Path, width: int) -> None:
    found, said = browse(full.read_text(), width, tmp_path)
    assert not re.search(r"CONSOLE|Content Security Policy", said)
    assert (found["width"], found["scroll"], found["wide"]) == (width, width, [])
    last, first, second, pointed = (words.split("\n") for words in found["read"])
    assert last == ["step 100", "● student 90.00", "● teacher0 98.50"]
    assert first == ["step 20", "● student 58.00", "● teacher0 98.50"]
    assert second == ["step 40", "● student 66.00", "● teacher0 98.50"]
    assert pointed == first and found["kept"]
    assert found["beside"] <= width, "the teacher's figures stand beside the student's"
