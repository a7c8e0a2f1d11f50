"""Codes KD56x: annotations, boxes and the metric of detection."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

DETECTION: dict[str, Explanation] = {
    "KD560": Explanation(
        "no COCO annotation file",
        "`meta_file` names a json file with images, annotations and categories; this one is missing or is"
        " something else.",
        "meta_file: coco/annotations/instances_val2017.json",
    ),
    "KD561": Explanation(
        "annotation that makes no sense",
        "An annotation lacks its box or names an image or a category that the file does not list.",
        "right: {image_id: 3, category_id: 1, bbox: [x, y, width, height]}",
    ),
    "KD562": Explanation(
        "image entry that lacks something",
        "Every image has a whole number as id, a file name, and its height and width in pixels.",
        "right: {id: 3, file_name: 000003.jpg, height: 480, width: 640}",
    ),
    "KD564": Explanation(
        "transform that leaves the boxes behind",
        "Moving pixels without their boxes would train on wrong boxes.",
        "right: flip, keep_ar_resize, to_tensor, normalize",
    ),
    "KD565": Explanation(
        "evaluation package missing",
        "The COCO metric is computed by a package that is not installed.",
        "the help line of the message names it",
    ),
    "KD566": Explanation(
        "results about other images",
        "Each image of the test set is evaluated exactly once, and only those of the annotation file are.",
        "evaluator: {type: COCO, kwargs: {gt_file: the same file as meta_file}}",
    ),
}
