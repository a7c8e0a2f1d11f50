"""COCO's average precision: boxes gathered from all processes, in original pixels, against an annotation file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.classes import match
from kdcli.data.detection.coco_json import CocoFile, beyond, read_coco
from kdcli.data.detection.coco_rows import Key, key_of
from kdcli.errors import RunError

MOST_BOXES = 100
"""COCO counts the best 100 boxes of each class in an image."""

HALF = 2**32
HEAD = 4
"""What a sample's row begins with: seen, upper and lower half of the image id, number of boxes; the boxes follow.

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
        self.most = MOST_BOXES
        """For so many boxes of an image there is room; it grows with what comes."""
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
            kept = best_of_each_class(boxes).cpu()
            if len(kept) > self.most:
                self.widen(max(len(kept), 2 * self.most))
            row = self._rows[index]
            upper, lower = divmod(int(image_id), HALF)
            row[:HEAD] = torch.tensor([1.0, upper, lower, len(kept)], dtype=torch.float64)
            row[HEAD : HEAD + kept.numel()] = kept.flatten()

    def widen(self, most: int) -> None:
        """Make room for so many boxes of an image: what is added over processes has one length."""
        if most <= self.most:
            return
        self.most = most
        if self._rows is None:
            return
        rows = torch.zeros(len(self._rows), HEAD + 6 * self.most, dtype=torch.float64)
        rows[:, : self._rows.shape[1]] = self._rows
        self._rows = rows

    def sums(self) -> Tensor:
        """One float64 vector, a row for every sample; rows of other processes are 0."""
        if self._rows is None:
            return torch.zeros(0, dtype=torch.float64)
        return self._rows.flatten().to(self._device)

    def result(self, sums: Tensor) -> dict[str, float]:
        """COCO's figures over the images that were seen."""
        if self._annotations is None:
            return {"AP": 0.0}
        seen = [self._written(_image_id(row)) for row in self._in_rows(sums) if row[0] > 0]
        return average_precision(self._truth(self._annotations), self.predictions(sums), seen)

    def details(self, sums: Tensor) -> PrecisionDetails | None:
        """AP by class and precision by recall over the images that were seen; None without any."""
        if self._annotations is None:
            return None
        seen = [self._written(_image_id(row)) for row in self._in_rows(sums) if row[0] > 0]
        return precision_details(self._truth(self._annotations), self.predictions(sums), seen)

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
        for row in self._in_rows(sums):
            if row[0] > 1:
                raise RunError.of(
                    "KD566", f"image {self._written(_image_id(row / row[0]))} was evaluated twice"
                )
            count = int(row[HEAD - 1])
            boxes = row[HEAD : HEAD + 6 * count].reshape(count, 6)
            rows += coco_rows(self._written(_image_id(row)), boxes, categories)
        return rows

    def _in_rows(self, sums: Tensor) -> Tensor:
        assert self._annotations is not None
        return sums.cpu().reshape(int(self._annotations["samples"]), -1)

    def _truth(self, annotations: Mapping[str, Any]) -> Path:
        return Path(annotations["file"] if self.gt_file is None else self.gt_file)

    def _written(self, image: int) -> Key:
        """An image's id as the file that the samples come from has it."""
        written: Mapping[int, str] = (self._annotations or {}).get("written_ids", {})
        return written.get(image, image)

    def _categories(self, annotations: Mapping[str, Any]) -> list[Key | None]:
        """The truth's category id of each class; None where it has no such category."""
        ids = annotations["categories"]
        if "class_names" not in annotations:
            return list(ids)
        truth = read_coco(self._truth(annotations))
        fitting = match(dict(zip(ids, annotations["class_names"], strict=True)), truth.names)
        own = {learnt: truth.written_categories.get(known, known) for known, learnt in fitting.ids.items()}
        return [own.get(category) for category in ids]

    def _begin(self, annotations: Mapping[str, Any]) -> None:
        self._annotations = annotations
        self._rows = torch.zeros(int(annotations["samples"]), HEAD + 6 * self.most, dtype=torch.float64)


def _image_id(row: Tensor) -> int:
    return int(row[1]) * HALF + int(row[2])


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


def best_of_each_class(boxes: Tensor, most: int = MOST_BOXES) -> Tensor:
    """Of boxes [n, 6], best first and their class last, the best `most` of each class, in their order."""
    if len(boxes) <= most:
        return boxes
    labels = boxes[:, 5].long()
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    begins = (counts.cumsum(0) - counts)[labels[by_class]]
    places = torch.empty_like(by_class)
    places[by_class] = torch.arange(len(boxes), device=boxes.device) - begins
    return boxes[places < most]


def answers_with_boxes(outputs: Mapping[str, Any]) -> bool:
    """Whether outputs have boxes with classes; proposals, of a list that ends after `rpn_post`, don't count."""
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


METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True, slots=True)
class PrecisionDetails:
    """What COCO's figures are means of.

    classes: the truth's categories by ascending id. boxes: how many of each had to be found. ap, ap50: of each class in
    percent, None without a box. curves: precision in percent at each recall of RECALLS, by the overlap (IoU) from which
    a box counts, a mean over the classes. sizes: how many small, medium and large boxes had to be found.
    """

    classes: tuple[str, ...]
    boxes: tuple[int, ...]
    ap: tuple[float | None, ...]
    ap50: tuple[float | None, ...]
    curves: Mapping[str, tuple[float, ...]]
    sizes: tuple[int, int, int]


RECALLS = tuple(round(0.05 * step, 2) for step in range(21))
"""Of COCO's 101 recalls every fifth."""

OVERLAPS = {"0.5": 0, "0.75": 5, "0.9": 8}
"""Overlaps whose curves are shown, with their places among COCO's ten."""

SMALL, LARGE = 32**2, 96**2
"""COCO's borders of a small and a large object, in square pixels."""


def average_precision(
    truth: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[Key] | None = None
) -> dict[str, float]:
    """The six figures in percent; one that has no ground truth (no large object, say) is left out.

    rows: of a COCO results file, with the truth's own ids. images: the ids that were looked at; all by
    default. Boxes of the truth are cut to their image, and what nothing is left of does not count
    (kdcli.tasks.detection.metrics). Raises RunError KD560 to KD562 for the file, KD565 where the evaluation
    package is missing, KD566 where rows and truth are about different images.
    """
    _, _, scored = _scored(truth, rows, images)
    if scored is None:
        return {name: 0.0 for name in METRICS[:3]}
    return {
        name: 100.0 * float(value)
        for name, value in zip(METRICS, scored.stats[: len(METRICS)], strict=True)
        if value >= 0
    }


def precision_details(
    truth: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[Key] | None = None
) -> PrecisionDetails:
    """AP by class, precision by recall and numbers of boxes; arguments and errors as of `average_precision`."""
    known, chosen, scored = _scored(truth, rows, images)
    counted = chosen[known.box_images] & ~known.crowds
    classes = tuple(known.names.values())
    boxes = np.bincount(known.box_categories[counted], minlength=len(classes)).tolist()
    areas = known.areas[counted]
    small, large = int((areas < SMALL).sum()), int((areas > LARGE).sum())
    if scored is None:
        nothing = tuple(0.0 if count else None for count in boxes)
        curves = {name: tuple(0.0 for _ in RECALLS) for name in OVERLAPS}
        ap, ap50 = nothing, nothing
    else:
        # [overlap, recall, class], of objects of any size and the best 100 boxes; -1 where nothing was to be found.
        precision = np.asarray(scored.eval["precision"])[:, :, :, 0, -1]
        precision = np.where(precision < 0, np.nan, 100.0 * precision)
        there = np.array(boxes) > 0
        ap, ap50 = (
            tuple(
                float(np.nanmean(part[:, :, k])) if there[k] and not np.isnan(part[:, :, k]).all() else None
                for k in range(len(classes))
            )
            for part in (precision, precision[:1])
        )
        mean = np.nanmean(precision[:, :, there], axis=2) if there.any() else np.zeros(precision.shape[:2])
        curves = {name: tuple(float(value) for value in mean[place, ::5]) for name, place in OVERLAPS.items()}
    return PrecisionDetails(
        classes, tuple(boxes), ap, ap50, curves, (small, len(areas) - small - large, large)
    )


def _scored(
    truth: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[Key] | None
) -> tuple[Truth, NDArray[np.bool_], Any]:
    """The truth, which of its images count, and the package's evaluation; None in its place without a row."""
    known = read_truth(truth)
    places, classes = known.file.image_keys, known.file.category_keys
    asked = dict.fromkeys([*(images or ()), *(row["image_id"] for row in rows)])
    strange = [image for image in asked if key_of(image) not in places]
    if strange:
        raise RunError.of(
            "KD566",
            f"`{truth}` does not list image {strange[0]}, which was predicted on",
            "`gt_file` of the evaluator is the file that the test data is read from",
        )
    chosen = np.full(len(places), images is None)
    chosen[[places[key] for image in images or () if (key := key_of(image)) is not None]] = True
    if not rows:
        return known, chosen, None
    # The packages know ids as fixed-width integers: they get small ones, in the same order.
    found = [
        {**row, "image_id": places[image] + 1, "category_id": classes[category] + 1}
        for row in rows
        if (image := key_of(row["image_id"])) is not None
        and (category := key_of(row["category_id"])) is not None
        and category in classes
    ]
    dataset, evaluator = _evaluator()
    with redirect_stdout(StringIO()):
        known_boxes = dataset()
        known_boxes.dataset = _dataset(known, chosen)
        known_boxes.createIndex()
        # The package writes into what it is given.
        scored = evaluator(known_boxes, known_boxes.loadRes(found), iouType="bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return known, chosen, scored


def _dataset(truth: Truth, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The chosen images of the truth as a COCO dict for the evaluation package; ids are places from 1."""
    kept = chosen[truth.box_images]
    rows = zip(
        (truth.box_images[kept] + 1).tolist(),
        (truth.box_categories[kept] + 1).tolist(),
        truth.bboxes[kept].tolist(),
        truth.areas[kept].tolist(),
        truth.crowds[kept].tolist(),
        strict=True,
    )
    return {
        "images": [{"id": place + 1} for place in np.flatnonzero(chosen).tolist()],
        "categories": [{"id": number, "name": name} for number, name in enumerate(truth.names.values(), 1)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, category, bbox, area, crowd) in enumerate(rows, start=1)
        ],
    }


def _evaluator() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        pass
    else:
        return COCO, COCOeval_faster
    try:
        from pycocotools.coco import COCO as PlainCOCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as reason:
        raise RunError.of(
            "KD565",
            "average precision needs faster-coco-eval, which is not installed",
            "install it: `pip install 'kdcli[detection]'`",
        ) from reason
    return PlainCOCO, COCOeval


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The boxes of an annotation file that predictions are measured by, in its order.

    box_images, box_categories: int64 [M], places in file.ids and in file.names. bboxes: float64 [M, 4], x, y,
    width, height. areas: float64 [M]. crowds: bool [M].
    """

    file: CocoFile
    box_images: NDArray[np.int64]
    box_categories: NDArray[np.int64]
    bboxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]

    @property
    def names(self) -> Mapping[int, str]:
        """Names of the categories, by ascending id."""
        return self.file.names

    def counting(self, images: Collection[int]) -> int:
        """How many boxes of these images a detector has to find: all but crowds."""
        chosen = np.isin(self.file.ids, np.array(sorted(images), dtype=np.int64))
        return int((chosen[self.box_images] & ~self.crowds).sum())


def read_truth(path: Path) -> Truth:
    """Read and check a COCO file; raises RunError KD560 to KD562.

    What the data leaves out as empty or outside its image is not there either, since nobody can find it;
    boxes that reach over the border are cut to the image, as in training. All others are as written, so that
    the figures are COCO's. Without an `area`, a box has its width times its height.
    """
    found = read_coco(path)
    kept = found.inside
    images, boxes, edges = found.box_images[kept], found.boxes[kept], found.edges[kept]
    over = beyond(boxes, found.sizes[images])
    inner = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)
    bboxes = np.where(over[:, None], inner, boxes)
    areas = found.areas[kept]
    areas = np.where(np.isnan(areas), bboxes[:, 2] * bboxes[:, 3], areas)
    return Truth(found, images, found.box_categories[kept], bboxes, areas, found.crowd[kept])
