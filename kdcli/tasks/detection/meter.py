"""Boxes gathered from all processes, measured by COCO's average precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.categories import match
from kdcli.data.detection.coco_json import read_coco
from kdcli.data.detection.coco_rows import Key
from kdcli.errors import RunError
from kdcli.tasks.detection.coco_metric import average_precision
from kdcli.tasks.detection.predictions import coco_rows, original_boxes

MOST_BOXES = 100
"""COCO counts this many boxes an image, the best."""

HALF = 2**32
HEAD = 4
WIDTH = HEAD + 6 * MOST_BOXES
"""A sample's row: seen, upper and lower half of the image id, number of boxes, then the boxes.

A float64 holds half of a 64-bit id exactly, and not all of it.
"""


class DetectionMeter:
    """Keeps the boxes of each sample in a row of its own, so that processes' sums add up to all of them.

    Metrics: COCO's figures in percent, against gt_file or else the file the samples come from; classes and
    its categories are the same by their names. annotations: of the data (kdcli.data.detection.coco); without it, what
    the first batch says, and a process without a batch can't be summed with others.
    """

    unusable = "gives boxes that are not finite (NaN or infinite)"

    def __init__(self, gt_file: str | None = None, annotations: Mapping[str, Any] | None = None) -> None:
        self.gt_file = gt_file
        self._rows: Tensor | None = None
        self._device = torch.device("cpu")
        self._annotations: Mapping[str, Any] | None = None
        if annotations is not None:
            self._begin(annotations)

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """outputs["dt_bboxes"] [N, 7]; of the batch image_info, image_ids, indices, annotations."""
        self._device = outputs["dt_bboxes"].device
        if self._rows is None:
            self._begin(batch["annotations"])
        assert self._rows is not None
        found = original_boxes(outputs, batch)
        for index, image_id, boxes in zip(batch["indices"].tolist(), batch["image_ids"], found, strict=True):
            kept = boxes[:MOST_BOXES].cpu()
            row = self._rows[index]
            upper, lower = divmod(int(image_id), HALF)
            row[:HEAD] = torch.tensor([1.0, upper, lower, len(kept)], dtype=torch.float64)
            row[HEAD : HEAD + kept.numel()] = kept.flatten()

    def sums(self) -> Tensor:
        """One float64 vector, a row for every sample; rows of other processes are 0."""
        if self._rows is None:
            return torch.zeros(0, dtype=torch.float64)
        return self._rows.flatten().to(self._device)

    def result(self, sums: Tensor) -> dict[str, float]:
        """COCO's figures over the images that were seen."""
        if self._annotations is None:
            return {"AP": 0.0}
        seen = [self._written(_image_id(row)) for row in sums.cpu().reshape(-1, WIDTH) if row[0] > 0]
        return average_precision(self._truth(self._annotations), self.predictions(sums), seen)

    def unanswered(self, sums: Tensor) -> int:
        """None: a detector that finds nothing has answered."""
        return 0

    def unanswered_samples(self) -> list[int]:
        """None."""
        return []

    def predictions(self, sums: Tensor) -> list[dict[str, Any]]:
        """The rows of a COCO results file, with ids as the file that is measured by has them.

        What it has no category for is left out.
        """
        if self._annotations is None:
            return []
        rows: list[dict[str, Any]] = []
        categories = self._categories(self._annotations)
        for row in sums.cpu().reshape(-1, WIDTH):
            if row[0] > 1:
                raise RunError.of(
                    "KD566", f"image {self._written(_image_id(row / row[0]))} was evaluated twice"
                )
            count = int(row[HEAD - 1])
            boxes = row[HEAD : HEAD + 6 * count].reshape(count, 6)
            rows += coco_rows(self._written(_image_id(row)), boxes, categories)
        return rows

    def _truth(self, annotations: Mapping[str, Any]) -> Path:
        return Path(annotations["file"] if self.gt_file is None else self.gt_file)

    def _written(self, image: int) -> Key:
        """An image's id as the file that the samples come from has it."""
        written: Mapping[int, str] = (self._annotations or {}).get("written_ids", {})
        return written.get(image, image)

    def _categories(self, annotations: Mapping[str, Any]) -> list[Key | None]:
        """What the truth calls each class; None where it has no such category."""
        ids = annotations["categories"]
        if "class_names" not in annotations:
            return list(ids)
        truth = read_coco(self._truth(annotations))
        fitting = match(dict(zip(ids, annotations["class_names"], strict=True)), truth.names)
        own = {learnt: truth.written_categories.get(known, known) for known, learnt in fitting.ids.items()}
        return [own.get(category) for category in ids]

    def _begin(self, annotations: Mapping[str, Any]) -> None:
        self._annotations = annotations
        self._rows = torch.zeros(int(annotations["samples"]), WIDTH, dtype=torch.float64)


def _image_id(row: Tensor) -> int:
    return int(row[1]) * HALF + int(row[2])
