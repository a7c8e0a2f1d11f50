"""The pictures of report_data.json as PNG, for loggers."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from kdcli.report.charts import class_chart, reliability_chart, similarity_chart
from kdcli.report.page.report_page import REPORT_DATA
from kdcli.report.recorded_run import read_report_data

TILE, GAP = 96, 8


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
