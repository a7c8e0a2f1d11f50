"""COCO's average precision of predicted boxes against an annotation file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from kdcli.errors import RunError
from kdcli.tasks.detection.truth import Truth, read_truth

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def average_precision(
    truth: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[int] | None = None
) -> dict[str, float]:
    """The six figures in percent; one that has no ground truth (no large object, say) is left out.

    rows: of a COCO results file. images: the ids that were looked at; all by default. Boxes of the truth are
    cut to their image, and what nothing is left of does not count (kdcli.tasks.detection.truth). Raises
    RunError KD560 to KD562 for the file, KD565 where the evaluation package is missing, KD566 where rows and
    truth are about different images.
    """
    known = read_truth(truth)
    strange = sorted(({row["image_id"] for row in rows} | set(images or ())) - set(known.images))
    if strange:
        raise RunError.of(
            "KD566",
            f"`{truth}` does not list image {strange[0]}, which was predicted on",
            "`gt_file` of the evaluator is the file that the test data is read from",
        )
    if not rows:
        return {name: 0.0 for name in METRICS[:3]}
    # The packages know ids as fixed-width integers: they get small ones, in the same order.
    places = {image: number for number, image in enumerate(known.images, start=1)}
    classes = {category: number for number, category in enumerate(known.names, start=1)}
    found = [
        {**row, "image_id": places[row["image_id"]], "category_id": classes[row["category_id"]]}
        for row in rows
        if row["category_id"] in classes
    ]
    dataset, evaluator = _evaluator()
    with redirect_stdout(StringIO()):
        known_boxes = dataset()
        known_boxes.dataset = _dataset(
            known, places, classes, set(known.images if images is None else images)
        )
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


def _dataset(
    truth: Truth, places: Mapping[int, int], classes: Mapping[int, int], chosen: Collection[int]
) -> dict[str, Any]:
    """The chosen images as the packages want a file; places, classes: their numbers for its ids."""
    boxes = [box for box in truth.boxes if box.image in chosen]
    return {
        "images": [{"id": places[image]} for image in truth.images if image in chosen],
        "categories": [{"id": classes[category], "name": name} for category, name in truth.names.items()],
        "annotations": [
            {
                "id": number,
                "image_id": places[box.image],
                "category_id": classes[box.category],
                "bbox": list(box.bbox),
                "area": box.area,
                "iscrowd": int(box.crowd),
            }
            for number, box in enumerate(boxes, start=1)
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
