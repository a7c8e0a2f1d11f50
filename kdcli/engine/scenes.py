"""Images with the boxes of each detector, as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.engine.compare import Contender
from kdcli.engine.pictures import image_uri

LEAST_SCORE = 0.3
MOST_BOXES = 30
SIDE = 640


def scenes(
    contenders: Sequence[Contender], batch: Mapping[str, Any], facts: DataFacts
) -> list[dict[str, Any]]:
    """The `detections` of report_data.json: each image with its true boxes and every network's.

    Boxes are in pixels of the image as the student sees it, without padding; predicted ones above a score of
    0.3, the best thirty.
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for contender in contenders:
            outputs = contender.outputs(batch)
            if "dt_bboxes" in outputs:  # a teacher whose list ends early has none
                found[contender.name] = outputs["dt_bboxes"].float().cpu()
    shown = []
    for index, image in enumerate(batch["image"]):
        height, width = (int(side) for side in batch["image_info"][index][:2])
        boxes = {"truth": [_box(row, facts) for row in batch["boxes"][index].tolist()]}
        for name, rows in found.items():
            own = rows[(rows[:, 0] == index) & (rows[:, 5] >= LEAST_SCORE)]
            best = own[own[:, 5].argsort(descending=True, stable=True)][:MOST_BOXES]
            boxes[name] = [_box([*row[1:5], row[6]], facts, score=round(row[5], 3)) for row in best.tolist()]
        uri = image_uri(image[:, :height, :width], facts.mean, facts.std, side=SIDE)
        shown.append({"image": uri, "width": width, "height": height, "boxes": boxes})
    return shown


def _box(row: Sequence[float], facts: DataFacts, score: float | None = None) -> list[Any]:
    """x1, y1, x2, y2, the name of the class (counted from 1), the score."""
    label, names = int(row[4]), facts.class_names or ()
    name = names[label - 1] if 0 < label <= len(names) else str(label)
    return [*(round(value, 1) for value in row[:4]), name, score]
