"""report.html: one self-contained page about a run, section by section; its pictures also as PNG, for loggers."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from kdcli.disk import write_whole
from kdcli.report import html_elements as page
from kdcli.report.charts import (
    PALETTE,
    class_chart,
    need_matplotlib,
    reliability_chart,
    run_curves,
    similarity_chart,
)
from kdcli.report.quantities import duration, speed
from kdcli.report.recorded_run import (
    DetectedImage,
    Disagreement,
    FeatureMaps,
    RecordedRun,
    ReportData,
    read_report_data,
    read_run,
)
from kdcli.report.results_table import cost_sentence, eval_rows, result_rows
from kdcli.spec.text.nodes import leaves

REPORT = "report.html"
REPORT_DATA = "report_data.json"
TILE, GAP = 96, 8
"""Pixels of an image in a sheet, and between two."""


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run folder from its records and report_data.json; returns its path.

    Needs the extra `report` (RunError KD755 without it); sections without data are left out.
    """
    need_matplotlib()
    run = read_run(run_dir)
    return write_whole(run_dir / REPORT, report_page(run, read_report_data(run_dir / REPORT_DATA)))


def report_page(run: RecordedRun, data: ReportData) -> str:
    """The HTML of the page."""
    return page.page(f"{run.name} · kdcli", filter(None, _sections(run, data)))


def _sections(run: RecordedRun, data: ReportData) -> list[str]:
    curves = [page.card(title, drawn) for title, drawn in run_curves(run).items()]
    similarities = [
        page.card(f"with {one.teacher}", similarity_chart(one).svg(), wide=True) for one in data.cka
    ]
    return [
        _head(run),
        page.section("What went wrong", *(page.paragraph(alarm["message"]) for alarm in run.alarms)),
        page.section("Result", _results(run)),
        page.section("Quality and cost", *_comparison(data)),
        page.section("Curves", page.cards(curves)),
        page.section("Accuracy by class", *_classes(data)),
        page.section("Reliability", *_reliability(data)),
        page.section("Where they disagree most", _disagreements(data.disagreements)),
        page.section("Detections", *_detections(data.detections)),
        page.section("Feature maps", page.cards(map(_maps, data.features))),
        page.section("Which layers are alike", *similarities),
        page.section("How it was run", *_origin(run)),
    ]


def _head(run: RecordedRun) -> str:
    seconds = run.finished["seconds"] if run.finished else run.steps.seconds
    facts = [run.progress, duration(float(seconds))]
    if run.steps.images and run.steps.seconds:
        facts.append(f"{speed(run.steps.images, run.steps.seconds)} on average")
    return f"<header><h1>{page.text(run.name)}</h1>{page.paragraph(' · '.join(facts))}</header>"


def _results(run: RecordedRun) -> str:
    if not run.last:
        return page.paragraph("Not evaluated yet.")
    rows = {f"{run.student}, last": run.last, f"{run.student}, best": run.best, **run.teachers}
    columns, cells = result_rows(list(rows.items()), run.primary)
    return page.table(["", *columns], cells)


def _comparison(data: ReportData) -> list[str]:
    if not data.comparison:
        return []
    columns = ["", *(row.network for row in data.comparison)]
    lines = eval_rows(data.comparison, primary=data.primary)
    return [page.table(columns, lines), page.paragraph(cost_sentence(data.comparison))]


def _classes(data: ReportData) -> list[str]:
    if data.class_accuracy is None or not data.class_accuracy.classes:
        return []
    drawn, remark = class_chart(data.class_accuracy)
    return [page.paragraph(remark), page.card("Right answers in each class", drawn.svg(), wide=True)]


def _reliability(data: ReportData) -> list[str]:
    if not data.reliability:
        return []
    words = "Below the dotted line a network is surer than it should be."
    return [
        page.paragraph(words),
        page.cards([page.card("Confidence and truth", reliability_chart(data.reliability).svg())]),
    ]


def _disagreements(disagreements: tuple[Disagreement, ...]) -> str:
    figures = []
    for one in disagreements:
        lines = [f"<b>{page.text(one.label)}</b>"] if one.label is not None else []
        lines += [
            f"{page.text(name)}: {page.text(answer)} ({100 * confidence:.0f}&nbsp;%)"
            for name, (answer, confidence) in one.answers.items()
        ]
        drawn = page.image(one.image, f"labelled {one.label}" if one.label is not None else "an image")
        figures.append(f"<figure>{drawn}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _maps(pair: FeatureMaps) -> str:
    rows = "".join(
        f'<div class="maps">{page.image(image, "input")}{page.image(student, "student")}'
        f"{page.image(teacher, 'teacher')}</div>"
        for image, student, teacher in pair.rows
    )
    return page.card(pair.title, page.paragraph("input, student, teacher") + rows)


def _detections(detections: tuple[DetectedImage, ...]) -> list[str]:
    if not detections:
        return []
    networks = list(dict.fromkeys(name for one in detections for name in one.boxes))
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(networks)}
    legend = " · ".join(
        f'<b style="color:{colour}">{page.text(name)}</b>' for name, colour in colours.items()
    )
    return [f"<p>{legend}</p>", page.cards(_boxes(one, colours) for one in detections)]


def _boxes(one: DetectedImage, colours: Mapping[str, str]) -> str:
    size = max(one.width, one.height, 1.0)
    parts = [f'<image href="{one.image}" width="{one.width:g}" height="{one.height:g}"/>']
    for name, boxes in one.boxes.items():
        for x1, y1, x2, y2, label, score in boxes:
            shown = f"{name}: {label}" + ("" if score is None else f" {score:.2f}")
            parts.append(
                f'<rect x="{x1:g}" y="{y1:g}" width="{max(0.0, x2 - x1):g}" height="{max(0.0, y2 - y1):g}" '
                f'fill="none" stroke="{colours[name]}" stroke-width="{size / 200:g}">'
                f"<title>{page.text(shown)}</title></rect>"
                f'<text x="{x1:g}" y="{y1 - size / 200:g}" font-size="{size / 35:g}" '
                f'style="fill:{colours[name]}">{page.text(label)}</text>'
            )
    view = f'viewBox="0 0 {one.width:g} {one.height:g}"'
    return f'<figure><svg role="img" aria-label="boxes" {view}>{"".join(parts)}</svg></figure>'


def _origin(run: RecordedRun) -> list[str]:
    return [page.facts(_facts(run.env)), page.folded("spec.resolved.yaml", run.spec_text)]


def _facts(env: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a run was made, as rows of a table: a command line as one text, without what is empty."""
    return [
        (key, shlex.join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in leaves(env)
        if value not in (None, "", [], {})
    ]


def report_pictures(run_dir: Path) -> dict[str, bytes]:
    """Charts and image sheets of a run's report_data.json as PNG by name; empty without such a file."""
    data = read_report_data(run_dir / REPORT_DATA)
    pictures: dict[str, bytes] = {}
    if data.class_accuracy is not None and data.class_accuracy.classes:
        pictures["report/accuracy_by_class"] = class_chart(data.class_accuracy)[0].png()
    if data.reliability:
        pictures["report/reliability"] = reliability_chart(data.reliability).png()
    for similarity in data.cka:
        pictures[f"report/similarity_{similarity.teacher}"] = similarity_chart(similarity).png()
    if data.disagreements:
        rows = [[one.image for one in data.disagreements[at : at + 4]] for at in range(0, 12, 4)]
        pictures["report/disagreements"] = _sheet([row for row in rows if row])
    for number, maps in enumerate(data.features):
        pictures[f"report/features_{number}"] = _sheet([list(row) for row in maps.rows])
    return pictures


def _sheet(rows: list[list[str]]) -> bytes:
    """A PNG that shows images, given as data URIs, as tiles in rows."""
    from PIL import Image

    width = max(len(row) for row in rows) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, len(rows) * (TILE + GAP) + GAP), "white")
    for y, row in enumerate(rows):
        for x, uri in enumerate(row):
            tile = Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
            tile = tile.resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (GAP + x * (TILE + GAP), GAP + y * (TILE + GAP)))
    buffer = BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
