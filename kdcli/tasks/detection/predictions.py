"""Predicted boxes in the pixels of the original images, as COCO writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.detection.coco_rows import Key


def original_boxes(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> list[Tensor]:
    """For each image float64 [n, 6]: x, y, width, height in original pixels, score, class from 1.

    outputs["dt_bboxes"] [N, 7]; reads `image_info`, and of `annotations` box_offset and categories: a box of
    a class beyond these is left out. Best first.
    """
    boxes = outputs["dt_bboxes"].detach().double()
    annotations = batch.get("annotations", {})
    offset = int(annotations.get("box_offset", 0))
    if "categories" in annotations:
        boxes = boxes[boxes[:, 6] <= len(annotations["categories"])]
    found = []
    for image, info in enumerate(batch["image_info"]):
        height, width, scale_h, scale_w = (float(value) for value in info[:4])
        own = boxes[boxes[:, 0] == image]
        own = own[own[:, 5].argsort(descending=True, stable=True)]
        x = own[:, [1, 3]].clamp(0, width) / scale_w
        y = own[:, [2, 4]].clamp(0, height) / scale_h
        size_x, size_y = x[:, 1] - x[:, 0] + offset, y[:, 1] - y[:, 0] + offset
        found.append(torch.stack([x[:, 0], y[:, 0], size_x, size_y, own[:, 5], own[:, 6]], dim=1))
    return found


def answers_with_boxes(outputs: Mapping[str, Any]) -> bool:
    """Whether a network says what is where; proposals, of a list that ends after `rpn_post`, are no answer."""
    boxes = outputs.get("dt_bboxes")
    return boxes is not None and boxes is not outputs.get("rpn_dt_bboxes")


def coco_rows(
    image_id: Key, boxes: Tensor | Sequence[Sequence[float]], categories: Sequence[Key | None]
) -> list[dict[str, Any]]:
    """One image's boxes [n, 6] as the rows of a COCO results file.

    categories[i] is the id of class i + 1; boxes of a class that has none are left out.
    """
    rows = boxes.tolist() if isinstance(boxes, Tensor) else boxes
    return [
        {
            "image_id": image_id,
            "category_id": categories[int(label) - 1],
            "bbox": [round(x, 3), round(y, 3), round(w, 3), round(h, 3)],
            "score": round(score, 6),
        }
        for x, y, w, h, score, label in rows
        if categories[int(label) - 1] is not None
    ]


def save_coco(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a COCO results file."""
    path.write_text(json.dumps(list(rows)) + "\n", encoding="utf-8")
