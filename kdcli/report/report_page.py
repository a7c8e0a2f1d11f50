"""report.html: one self-contained page about a run, section by section; its pictures also as PNG, for loggers."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from kdcli.disk import write_whole
from kdcli.report import html_elements as page
from kdcli.report.charts import (
    FEW,
    FEW_SHARE,
    PALETTE,
    class_chart,
    joined_bins,
    need_matplotlib,
    precision_chart,
    reliability_chart,
    run_curves,
    similarity_chart,
)
from kdcli.report.quantities import MISSING, duration, measure, metric_words, speed
from kdcli.report.recorded_run import RecordedRun, read_run
from kdcli.report.report_data import (
    REPORT_DATA,
    DetectedImage,
    Disagreement,
    FeatureMaps,
    ReportData,
    read_report_data,
)
from kdcli.report.results_table import ResultColumn, against_baseline, headline, result_lines
from kdcli.report.run_identity import BaselineRun, facts_of, method_words, read_baseline
from kdcli.spec.text.nodes import leaves

REPORT = "report.html"
WARNINGS = 8
"""At most so many warnings stand there unfolded."""
CLASS_ROWS = 20
"""At most so many classes of a table stand there unfolded."""
TILE, GAP = 96, 8
"""Pixels of an image in a sheet, and between two."""


def write_report(run_dir: Path, baseline: Path | None = None) -> Path:
    """Write report.html into a run folder from its records and report_data.json; returns its path.

    baseline: a run to compare it with. Needs the extra `report` (RunError KD755 without it); raises RunError KD855
    where the baseline was measured on other data or by another metric.
    """
    need_matplotlib()
    run = read_run(run_dir)
    beside = None if baseline is None else read_baseline(baseline, run)
    return write_whole(run_dir / REPORT, report_page(run, read_report_data(run_dir / REPORT_DATA), beside))


def report_page(run: RecordedRun, data: ReportData, baseline: BaselineRun | None = None) -> str:
    """The HTML of the page."""
    return page.page(f"{run.name} · kdcli", filter(None, _sections(run, data, baseline)))


def _sections(run: RecordedRun, data: ReportData, baseline: BaselineRun | None) -> list[str]:
    drawn = run_curves(run, None if baseline is None else baseline.run)
    curves = [page.card(title, content) for title, content in drawn.items()]
    similarities = [
        page.card(f"with {one.teacher}", similarity_chart(one).svg(), wide=True) for one in data.cka
    ]
    return [
        _head(run, data, baseline),
        page.section("Warnings of the run", *_warnings(run)),
        page.section("Warnings of this report", *_own_warnings(data)),
        page.section("Student and teacher", _result(run, data, baseline)),
        page.section("Curves", *_read(curves)),
        page.section("Average precision by class", *_precision(data)),
        page.section("Which classes are confused", *_confusion(data)),
        page.section("Worst classes", *_worst(data)),
        page.section("Accuracy by class", *_classes(data)),
        page.section("Reliability", *_reliability(data)),
        page.section("Where they disagree most", _disagreements(data.disagreements)),
        page.section("Detections", *_detections(data.detections)),
        page.section("Features", *_features(run, data)),
        page.section("Which layers are alike", *similarities),
        page.section("What is missing here", *_missing(run, data)),
        page.section("How it was run", *_origin(run)),
    ]


def _head(run: RecordedRun, data: ReportData, baseline: BaselineRun | None) -> str:
    # Of a resumed run the last process knows its own time alone.
    seconds = max(run.finished["seconds"] if run.finished else 0.0, run.steps.seconds)
    facts = [run.progress, duration(float(seconds))]
    if run.steps.images and run.steps.seconds:
        facts.append(f"{speed(run.steps.images, run.steps.seconds)} on average")
    primary, best = _primary(run, data), _best(run, data)
    said = headline(primary, best, _of_teachers(run, data), data.comparison)
    if baseline is not None:
        alone = not method_words(baseline.run.spec)
        said += f" {against_baseline(primary, best, baseline.run.best, baseline.name, alone=alone)}"
    shown = f'<p class="headline">{page.text(said)}</p>' if said else ""
    return f"<header><h1>{page.text(run.name)}</h1>{shown}{page.paragraph(' · '.join(facts))}</header>"


def _primary(run: RecordedRun, data: ReportData) -> str:
    return run.primary or data.primary


def _best(run: RecordedRun, data: ReportData) -> Mapping[str, float]:
    """The student's metrics: as the run recorded its best, and what only the report measured."""
    return {**(data.comparison[0].metrics if data.comparison else {}), **run.best}


def _of_teachers(run: RecordedRun, data: ReportData) -> dict[str, Mapping[str, float]]:
    measured = {row.network: row.metrics for row in data.comparison[1:]}
    return {
        name: {**measured.get(name, {}), **run.teachers.get(name, {})}
        for name in {**measured, **run.teachers}
    }


def _own_warnings(data: ReportData) -> list[str]:
    """What the figures of report_data.json, which are younger than the run's, have to be read with."""
    where = "curves and headline are of that data, tables and pictures of this."
    return [f'<p class="warning">{page.text(message)}: {where}</p>' for message in data.warnings]


def _warnings(run: RecordedRun) -> list[str]:
    """Alarms of the watch, each where it was first seen, and how often; then the other warnings."""
    parts: list[str] = []
    alarms: dict[str, list[Mapping[str, Any]]] = {}
    for alarm in run.alarms:
        alarms.setdefault(str(alarm.get("code") or alarm["message"]), []).append(alarm)
    for code, seen in alarms.items():
        again = "once" if len(seen) == 2 else f"{len(seen) - 1} times"
        more = f" And {again} more, to step {seen[-1]['step']:,}." if len(seen) > 1 else ""
        known = f" (<code>kdcli explain {page.text(code)}</code>)" if seen[0].get("code") else ""
        words = page.text(f"Step {seen[0]['step']:,}: {seen[0]['message']}{more}")
        parts.append(f'<p class="warning">{words}{known}</p>')
    parts += [f'<p class="warning">{page.text(message)}</p>' for message in run.warnings[:WARNINGS]]
    if len(run.warnings) > WARNINGS:
        parts.append(page.folded(f"{len(run.warnings) - WARNINGS} more", "\n".join(run.warnings[WARNINGS:])))
    return parts


def _result(run: RecordedRun, data: ReportData, baseline: BaselineRun | None) -> str:
    """The one table beside what was trained."""
    if run.last or data.comparison:
        columns = _columns(run, data, baseline)
        shown = page.table(
            ["", *(column.name for column in columns)],
            result_lines(columns, _primary(run, data)),
            kind="result",
        )
        shown += _parts(columns) + "".join(map(page.note, _notes(run, data, baseline)))
    else:
        shown = page.paragraph("Not evaluated yet.")
    facts = page.facts(facts_of(run))
    beside = f"<div><h3>What was run</h3>{facts}</div>" if facts else ""
    return f'<div class="sides"><div>{shown}</div>{beside}</div>'


def _columns(run: RecordedRun, data: ReportData, baseline: BaselineRun | None) -> list[ResultColumn]:
    """The student, its first teacher, the baseline, the other teachers: what is compared most stands together."""
    rows = {row.network: row for row in data.comparison}
    student = ResultColumn(
        run.student,
        _best(run, data),
        data.comparison[0] if data.comparison else None,
        last=run.last,
    )
    columns = [student]
    columns += [
        ResultColumn(name, metrics, rows.get(name)) for name, metrics in _of_teachers(run, data).items()
    ]
    if baseline is not None:
        row = baseline.row
        beside = ResultColumn(baseline.name, baseline.run.best, row, last=baseline.run.last, timed=False)
        columns.insert(2, beside)
    return columns


def _parts(columns: Sequence[ResultColumn]) -> str:
    """What a mean is of (`explained_variance.<layer>`), folded away."""
    names = dict.fromkeys(name for column in columns for name in column.metrics if "." in name)
    shown = [column for column in columns if any(name in column.metrics for name in names)]
    lines = [
        [metric_words(name), *(measure(c.metrics[name]) if name in c.metrics else MISSING for c in shown)]
        for name in names
    ]
    drawn = page.table(["", *(column.name for column in shown)], lines, kind="result")
    return f"<details><summary>by term and layer</summary>{drawn}</details>" if lines else ""


def _notes(run: RecordedRun, data: ReportData, baseline: BaselineRun | None) -> list[str]:
    notes = []
    if data.measured is not None and data.measured[1] and data.measured[0] < data.measured[1]:
        images, of = data.measured
        notes.append(f"The pictures and figures by class are of the first {images:,} of {of:,} test images.")
    if any(row.latency_ms_batch_1 for row in data.comparison):
        notes.append("Latency: the median of a forward on this machine's CPU.")
    if baseline is not None:
        kinds = method_words(baseline.run.spec)
        how = f"taught by {'; '.join(kinds)}" if kinds else "trained without a teacher"
        notes.append(f"{baseline.name}: {how}.")
        if baseline.differs:
            notes.append(f"This run is not the same experiment: {'; '.join(map(str, baseline.differs))}.")
    return notes


def _read(curves: Sequence[str]) -> list[str]:
    if not curves:
        return []
    words = "Point at a curve, or step along it with the arrow keys, to read its values."
    return [page.paragraph(words), page.cards(curves)]


def _precision(data: ReportData) -> list[str]:
    found = data.precision
    if found is None:
        return []
    names = list(found.ap)
    order = sorted(
        range(len(found.classes)), key=lambda k: (found.ap[names[0]][k] is None, found.ap[names[0]][k] or 0)
    )
    rows = [
        [found.classes[k], str(found.boxes[k]), *(_percent(found.ap[name][k]) for name in names)]
        + [_percent(found.ap50[name][k]) for name in names]
        for k in order
        if found.boxes[k]
    ]
    columns = ["class", "boxes", *(f"{name}, AP" for name in names), *(f"{name}, AP50" for name in names)]
    sizes = ", ".join(f"{count:,} {size}" for size, count in found.sizes.items())
    words = (
        f"To be found: {sizes} (below 32x32 pixels; to 96x96; above)."
        " The classes that the student finds worst come first."
    )
    first = page.table(columns, rows[:CLASS_ROWS], kind="result")
    if len(rows) > CLASS_ROWS:
        rest = page.table(columns, rows[CLASS_ROWS:], kind="result")
        first += f"<details><summary>{len(rows) - CLASS_ROWS} more classes</summary>{rest}</details>"
    overlaps = list(dict.fromkeys(overlap for curves in found.curves.values() for overlap in curves))
    drawn = [
        page.card(f"Precision by recall, overlap from {overlap}", precision_chart(found, overlap).readable())
        for overlap in overlaps
    ]
    return [page.paragraph(words), first, "<h3>Precision and recall</h3>", page.cards(drawn)]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _confusion(data: ReportData) -> list[str]:
    found = data.confusion
    if found is None:
        return []
    matrices = [
        page.card(name, page.matrix(found.classes, rows))
        for name, rows in found.networks.items()
        if found.classes
    ]
    words = (
        "Right class down, answer across: how many images. What is beside the diagonal is wrong."
        if matrices
        else ""
    )
    lists = [
        page.card(
            f"{name}: mistaken most often",
            page.table(
                ["right class", "answer", "images", "of"],
                [[one.label, one.answer, str(one.count), str(one.of)] for one in mistaken],
                kind="result",
            ),
        )
        for name, mistaken in found.mistaken.items()
        if mistaken and not matrices
    ]
    return [page.paragraph(words), page.cards([*matrices, *lists], large=True)] if matrices or lists else []


def _worst(data: ReportData) -> list[str]:
    if not data.worst_classes:
        return []
    words = (
        "The classes of which the student gets the least share right, with the mistakes that it is surest of."
    )
    cards = []
    for one in data.worst_classes:
        shares = " · ".join(f"{name} {100 * share:.1f} %" for name, share in one.shares.items())
        line = page.paragraph(f"{shares} of {one.support} right")
        cards.append(page.card(one.name, line + _disagreements(one.pictures, few=True)))
    return [page.paragraph(words), page.cards(cards)]


def _classes(data: ReportData) -> list[str]:
    if data.class_accuracy is None or not data.class_accuracy.classes:
        return []
    drawn, remark = class_chart(data.class_accuracy)
    return [page.paragraph(remark), page.card("Right answers in each class", drawn.svg(), wide=True)]


def _reliability(data: ReportData) -> list[str]:
    if not data.reliability:
        return []
    words = (
        "How often a network is right (down) when it is so sure (across). Below the dotted line it is surer than it"
        f" should be. The larger a dot, the more images; spans of confidence with fewer than {FEW} images, or than"
        f" {100 * FEW_SHARE:g} % of all, are put together with their neighbours."
    )
    counts = [
        page.card(
            f"{name}: images by confidence",
            page.table(
                ["confidence", "right", "images"],
                [
                    [f"{100 * one.confidence:.1f} %", f"{100 * one.accuracy:.1f} %", f"{one.count:,}"]
                    for one in joined_bins(bins)
                ],
            ),
        )
        for name, bins in data.reliability.items()
    ]
    drawn = page.card("Confidence and truth", reliability_chart(data.reliability).readable())
    return [page.paragraph(words), page.cards([drawn, *counts])]


def _disagreements(disagreements: tuple[Disagreement, ...], *, few: bool = False) -> str:
    """Images with each network's answer. few: of one class, which is named already, in a row."""
    figures = []
    for one in disagreements:
        lines = [f"<b>{page.text(one.label)}</b>"] if one.label is not None and not few else []
        lines += [
            f"{page.text(name)}: {page.text(answer)} ({100 * confidence:.0f}&nbsp;%)"
            for name, (answer, confidence) in one.answers.items()
        ]
        drawn = page.image(one.image, f"labelled {one.label}" if one.label is not None else "an image")
        figures.append(f"<figure>{drawn}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
    kind = "pictures few" if few else "pictures"
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


MAPS = (
    "Each map shows one layer's output on the image: a place is the lighter, the larger the layer's values there are"
    " (their mean magnitude over the channels, from the least to the greatest of the map). Compare where a map is"
    " light, not how light it is: a student that has learnt the layer looks where its teacher looks."
)
CONSTANTS = (
    "Constant: what a loss on features costs a student that answers the teacher's mean at every place of every image."
    " A loss that does not fall clearly below it has taught nothing about the images."
)


def _features(run: RecordedRun, data: ReportData) -> list[str]:
    """Maps of student and teacher, and each loss on features beside what a constant answer costs."""
    constants = run.steps.constants
    curves = {name: run.steps.losses[name] for name in constants if name in run.steps.losses}
    rows = [
        [
            name,
            measure(curves[name].last[1]),
            measure(constants[name]),
            _share(curves[name].last[1], constants[name]),
        ]
        for name in curves
    ]
    table = page.table(["loss", "at the last step", "constant", "share"], rows, kind="result") if rows else ""
    return [
        page.paragraph(CONSTANTS if rows else ""),
        table,
        page.paragraph(MAPS if data.features else ""),
        page.cards(map(_maps, data.features)),
    ]


def _share(value: float, of: float) -> str:
    return f"{100 * value / of:.0f} %" if of > 0 and math.isfinite(value) else MISSING


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


def _missing(run: RecordedRun, data: ReportData) -> list[str]:
    """What a report of this kind of run has and this one lacks, and how to get it."""
    again = shlex.join(["kdcli", "report", str(run.path)])
    if data == ReportData():
        words = (
            "The networks have not been run for this report: sizes, speeds and pictures are missing."
            f" {again} runs them."
        )
        return [page.paragraph(words)]
    if data.measured is not None or (data.class_accuracy is None and not data.detections):
        return []
    lacking = "average precision by class is" if data.detections else "confusion matrix and worst classes are"
    words = f"An older kdcli collected the figures: {lacking} missing. {again} collects them anew."
    return [page.paragraph(words)]


def _origin(run: RecordedRun) -> list[str]:
    return [page.facts(_facts(run.env)), page.folded("spec.resolved.yaml", run.spec_text)]


def _facts(env: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a run was made, as rows of a table: a command line as one text, without what is empty."""
    return [
        (key, shlex.join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in leaves({key: value for key, value in env.items() if key != "modules"})
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
