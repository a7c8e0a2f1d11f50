"""COCO's average precision of predicted boxes against an annotation file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from kdcli.errors import RunError

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def average_precision(
    truth: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[int] | None = None
) -> dict[str, float]:
    """The six figures in percent; one that has no ground truth (no large object, say) is left out.

    rows: of a COCO results file. images: the ids that were looked at; all by default. Raises RunError KD565
    where the evaluation package is missing, KD566 where rows and truth are about different images.
    """
    annotations = _truth(truth)
    known = {image["id"] for image in annotations["images"]}
    strange = sorted({row["image_id"] for row in rows} - known)
    if strange:
        raise RunError.of(
            "KD566",
            f"`{truth}` does not list image {strange[0]}, which was predicted on",
            "`gt_file` of the evaluator is the file that the test data is read from",
        )
    if not rows:
        return {name: 0.0 for name in METRICS[:3]}
    if images is not None:
        chosen = set(images)
        for key, own in (("images", "id"), ("annotations", "image_id")):
            annotations[key] = [row for row in annotations[key] if row[own] in chosen]
    dataset, evaluator = _evaluator()
    with redirect_stdout(StringIO()):
        known_boxes = dataset()
        known_boxes.dataset = annotations
        known_boxes.createIndex()
        # The package writes into what it is given.
        scored = evaluator(known_boxes, known_boxes.loadRes([dict(row) for row in rows]), iouType="bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return {
        name: 100.0 * float(value)
        for name, value in zip(METRICS, scored.stats[: len(METRICS)], strict=True)
        if value >= 0
    }


def _truth(path: Path) -> dict[str, Any]:
    """The annotation file with what the packages insist on filled in."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        annotations = [
            {
                **row,
                "id": number,
                "area": row.get("area", max(0.0, row["bbox"][2]) * max(0.0, row["bbox"][3])),
                "iscrowd": int(row.get("iscrowd", 0)),
            }
            for number, row in enumerate(data["annotations"], start=1)
        ]
        return {"images": data["images"], "annotations": annotations, "categories": data["categories"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as reason:
        raise RunError.of("KD560", f"`{path}` is no COCO annotation file: {reason}") from reason


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
