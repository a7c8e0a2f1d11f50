"""What a spec may say under `evaluator`: names and arguments; tasks/ has the metrics.

What a metric of one's own (`evaluator: {type: mine:F1}`) must be is `Metric` in kdcli/tasks/metric.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from kdcli.disk import asking, is_file
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.ranges import Count, NonNegative


@dataclass(frozen=True, kw_only=True)
class ImagenetArguments:
    """Top-k accuracy."""

    topk: list[int] = field(default_factory=lambda: [1, 5])


def imagenet(*, topk: list[Count] = [1, 5]) -> ImagenetArguments:  # noqa: B006
    """Top-k accuracy for each k."""
    if not topk or min(topk) < 1:
        raise ValueError(f"`topk` must be positive numbers, got {topk}")
    return ImagenetArguments(topk=list(topk))


@dataclass(frozen=True, kw_only=True)
class CocoArguments:
    """COCO's average precision."""

    gt_file: str | None = None
    iou_types: tuple[str, ...] = ("bbox",)


def coco(*, gt_file: str | None = None, iou_types: list[str] = ["bbox"]) -> CocoArguments:  # noqa: B006
    """Average precision against gt_file, the dataset's own meta_file by default."""
    return CocoArguments(gt_file=gt_file, iou_types=tuple(iou_types))


@dataclass(frozen=True, kw_only=True)
class LongTailArguments:
    """Top-k accuracy, and that of classes with many, some and few training images."""

    cls_freq: str
    topk: list[int]
    many_shot_thr: float = 100
    low_shot_thr: float = 20


def imagenet_lt(
    *,
    cls_freq: str,
    topk: list[Count] = [1, 5],  # noqa: B006
    many_shot_thr: NonNegative = 100,
    low_shot_thr: NonNegative = 20,
) -> LongTailArguments:
    """Top-k accuracy; of classes with over many_shot_thr, under low_shot_thr and other numbers of training images too.

    cls_freq: a JSON file with a list of these numbers, class by class.
    """
    imagenet(topk=topk)
    if low_shot_thr > many_shot_thr:
        raise ValueError(f"`low_shot_thr` is {low_shot_thr:g}, more than `many_shot_thr`, {many_shot_thr:g}")
    return LongTailArguments(
        cls_freq=cls_freq, topk=list(topk), many_shot_thr=many_shot_thr, low_shot_thr=low_shot_thr
    )


def class_counts(file: Path, path: SpecPath) -> list[int]:
    """The list of whole numbers in a JSON file; path: of the file's name in the spec. Raises SpecError KD586."""
    help = "it lists the number of training images of each class"
    if not is_file(file):
        raise SpecError.at(path, "KD586", f"there is no file `{file}`", help)
    try:
        with asking(file):
            counts = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise SpecError.at(path, "KD586", f"`{file}` can't be read as JSON: {reason}", help) from reason
    if not isinstance(counts, list) or not counts or not all(type(n) is int and n >= 0 for n in counts):
        raise SpecError.at(path, "KD586", f"`{file}` is no list of whole numbers", help)
    return counts
