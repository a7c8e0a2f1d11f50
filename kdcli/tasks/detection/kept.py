"""What detectors found on the test data, kept as COCO rows, drawn side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.models.detection.boxes import beyond_last_pixel
from kdcli.tasks.detection.meter import DetectionMeter
from kdcli.tasks.detection.pictures import side_by_side
from kdcli.tasks.detection.predictions import answers_with_boxes, save_coco
from kdcli.tasks.saved_outputs import unwritable

MOST_PICTURES = 20
"""So many of the first test images are drawn."""


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
