"""COCO's average precision of predicted boxes against an annotation file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcli.data.detection.coco_rows import Key, key_of
from kdcli.errors import RunError
from kdcli.tasks.detection.truth import Truth, read_truth

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def average_precision(
    truth: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[Key] | None = None
) -> dict[str, float]:
    """The six figures in percent; one that has no ground truth (no large object, say) is left out.

    rows: of a COCO results file, with the truth's own ids. images: the ids that were looked at; all by
    default. Boxes of the truth are cut to their image, and what nothing is left of does not count
    (kdcli.tasks.detection.truth). Raises RunError KD560 to KD562 for the file, KD565 where the evaluation
    package is missing, KD566 where rows and truth are about different images.
    """
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
    if not rows:
        return {name: 0.0 for name in METRICS[:3]}
    # The packages know ids as fixed-width integers: they get small ones, in the same order.
    found = [
        {**row, "image_id": places[image] + 1, "category_id": classes[category] + 1}
        for row in rows
        if (image := key_of(row["image_id"])) is not None
        and (category := key_of(row["category_id"])) is not None
        and category in classes
    ]
    chosen = np.full(len(places), images is None)
    chosen[[places[key] for image in images or () if (key := key_of(image)) is not None]] = True
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
    return {
        name: 100.0 * float(value)
        for name, value in zip(METRICS, scored.stats[: len(METRICS)], strict=True)
        if value >= 0
    }


def _dataset(truth: Truth, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The chosen of the truth's images as the packages want a file; ids are places from 1."""
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
