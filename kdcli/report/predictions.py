"""What `kdcli predict` shows: a table, JSON, a picture of each image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from kdcli import __version__
from kdcli.exports.predict import Prediction
from kdcli.report.console import as_text, table
from kdcli.tasks.pictures import side_by_side
from kdcli.tasks.saved_outputs import unwritable

SHOWN = 4
"""So many numbers of a vector are in the table."""


def predictions_text(
    predictions: Sequence[Prediction],
    kind: str,
    source: str,
    format: Literal["table", "json"] = "table",
    *,
    width: int | None = None,
) -> str:
    """All predictions. kind: `classes`, `boxes` or `features`; source: the file of the student's weights."""
    if format == "json":
        document = {
            "kdcli": __version__,
            "student": source,
            "kind": kind,
            "images": [_as_data(one) for one in predictions],
        }
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    columns = {
        "classes": ["image", "class", ">probability"],
        "boxes": ["image", "class", ">score", ">x1", ">y1", ">x2", ">y2"],
        "features": ["image", ">numbers", "vector"],
    }[kind]
    rows = [row for one in predictions if one.error is None for row in _rows(one, len(columns))]
    return as_text(table(columns, rows), width=width)


def _rows(one: Prediction, columns: int) -> list[list[str]]:
    """An image's lines; its name stands in the first."""
    if one.vector is not None:
        begin = ", ".join(f"{value:.3g}" for value in one.vector[:SHOWN])
        return [[one.image, str(len(one.vector)), f"{begin} ..."]]
    if one.classes is not None:
        cells = [[name, f"{share:.2%}"] for _, name, share in one.classes]
    else:
        cells = [
            [name, f"{score:.3f}", *(f"{edge:.1f}" for edge in box)]
            for _, name, score, box in one.boxes or ()
        ]
        cells = cells or [["no box", *[""] * (columns - 2)]]
    return [[one.image if number == 0 else "", *row] for number, row in enumerate(cells)]


def _as_data(one: Prediction) -> dict[str, object]:
    if one.error is not None:
        return {"image": one.image, "error": one.error}
    if one.vector is not None:
        return {"image": one.image, "pooled": list(one.vector)}
    if one.classes is not None:
        return {
            "image": one.image,
            "classes": [
                {"class": name, "index": index, "probability": share} for index, name, share in one.classes
            ],
        }
    return {
        "image": one.image,
        "boxes": [
            {"class": name, "index": index, "score": score, "box": list(box)}
            for index, name, score, box in one.boxes or ()
        ],
    }


def drawn(prediction: Prediction, folder: Path, *, bgr: bool = False) -> Path:
    """Write a picture of an image with what was answered: its boxes, or the likeliest class as a title.

    bgr: whether its channels are blue, green, red. Of two images of one name the second gets a number.
    """
    assert prediction.pixels is not None
    pixels = prediction.pixels.flip(0) if bgr else prediction.pixels
    title, rows, names = "", torch.zeros(0, 6), []
    if prediction.classes:
        _, name, share = prediction.classes[0]
        title = f"{name} {share:.1%}"
    elif prediction.boxes:
        names = list(dict.fromkeys(name for _, name, _, _ in prediction.boxes))
        rows = torch.tensor(
            [[*box, names.index(name) + 1.0, score] for _, name, score, box in prediction.boxes]
        )
    sheet = side_by_side(pixels.float() / 255, {title: rows}, names, least_score=0.0)
    stem, number = Path(prediction.image).stem, 1
    path = folder / f"{stem}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while path.exists():
            number += 1
            path = folder / f"{stem}_{number}.png"
        sheet.save(path)
    except OSError as error:
        raise unwritable(path, error) from error
    return path
