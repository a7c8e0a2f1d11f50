"""Images with the boxes of each detector, as a report shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.tasks.detection.predictions import answers_with_boxes
from kdcli.tasks.pictures import image_uri
from kdcli.tasks.task import Answered, Forward

LEAST_SCORE = 0.3
MOST_BOXES = 30
SIDE = 640

SCENES = 8
"""So many images are shown."""


class BoxesReport:
    """The boxes on the first images, without figures: those are of all of the test data."""

    layers = False

    def answered(
        self, networks: Mapping[str, Forward], batches: Iterator[Mapping[str, Any]], facts: DataFacts
    ) -> Answered:
        """The first images of the first batch, with every network's boxes."""
        whole = next(batches)
        batch = {
            name: value[:SCENES] if isinstance(value, (Tensor, list, tuple)) else value
            for name, value in whole.items()
        }
        outputs = {name: forward(batch) for name, forward in networks.items()}
        return Answered(sections={"detections": scenes(outputs, batch, facts)})


def scenes(
    outputs: Mapping[str, Mapping[str, Any]], batch: Mapping[str, Any], facts: DataFacts
) -> list[dict[str, Any]]:
    """The `detections` of report_data.json: each image with its true boxes and every network's.

    outputs: of each network on the batch.
    Boxes are in pixels of the image as the student sees it, without padding; predicted ones above a score of
    0.3, the best thirty.
    """
    found: dict[str, Tensor] = {
        name: own["dt_bboxes"].float().cpu()
        for name, own in outputs.items()
        if answers_with_boxes(own)  # a teacher whose list ends early has none
    }
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
