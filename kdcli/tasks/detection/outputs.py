"""Detectors' boxes on the test data: saved as COCO rows, drawn side by side, shown in a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.models.detection.boxes import beyond_last_pixel
from kdcli.tasks.detection.metrics import DetectionMeter, answers_with_boxes, save_coco
from kdcli.tasks.pictures import image_uri, side_by_side
from kdcli.tasks.saved_outputs import unwritable
from kdcli.tasks.task import Answered, Forward

MOST_PICTURES = 20
"""How many of the first test images are drawn."""


class KeptBoxes:
    """Rows of a COCO results file, and pictures."""

    def rows(self, meter: DetectionMeter, sums: Tensor) -> list[dict[str, Any]]:
        """The boxes of every image, with ids as the file that is measured by has them."""
        return meter.predictions(sums)

    def save(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a COCO results file."""
        save_coco(path, rows)

    def drawing(self, folder: Path, facts: DataFacts) -> Pictures:
        """Student, teachers and truth, a panel each."""
        return Pictures(folder, facts)


class Pictures:
    """Draws the first images of the test data: student, teachers and truth, a panel each."""

    def __init__(self, folder: Path, facts: DataFacts) -> None:
        self.folder, self.facts = folder, facts
        self.drawn = 0

    def draw(self, shown: Mapping[str, Mapping[str, Any]], batch: Mapping[str, Any]) -> None:
        """Write a picture for every image of the batch, while they are few."""
        offset = int((self.facts.annotations or {}).get("box_offset", 0))
        for index, info in enumerate(batch["image_info"]):
            if self.drawn >= MOST_PICTURES:
                return
            lacking = beyond_last_pixel(info, offset)
            panels = {
                name: _found(outputs["dt_bboxes"], index, lacking)
                for name, outputs in shown.items()
                if answers_with_boxes(outputs)
            }
            truth = batch["boxes"][index].detach().cpu()
            panels["truth"] = torch.cat([truth[:, :4] + lacking, truth[:, 4:]], dim=1)
            height, width = int(info[0]), int(info[1])
            sheet = side_by_side(
                batch["image"][index, :, :height, :width],
                panels,
                self.facts.class_names or (),
                mean=self.facts.mean,
                std=self.facts.std,
            )
            path = self.folder / f"{batch['image_ids'][index]}.png"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                sheet.save(path)
            except OSError as error:
                raise unwritable(path, error) from error
            self.drawn += 1


def _found(boxes: Tensor, index: int, lacking: Tensor) -> Tensor:
    """One image's boxes [n, 6]: edges, class, score."""
    own = boxes[boxes[:, 0] == index].detach().float().cpu()
    edges = own[:, 1:5] + lacking
    return torch.cat([edges, own[:, 6:7], own[:, 5:6]], dim=1)


LEAST_SCORE = 0.3
MOST_BOXES = 30
SIDE = 640

SCENES = 8
"""How many images a report shows."""


class BoxesReport:
    """A report's section with the boxes on the first images; metrics are those of all of the test data."""

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
