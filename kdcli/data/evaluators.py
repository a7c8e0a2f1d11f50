"""What a spec may say under `evaluator`: names and arguments; tasks/ has the metrics.

What a metric of one's own (`evaluator: {type: mine:F1}`) must be is `Metric` in kdcli/tasks/metric.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kdcli.spec.ranges import Count


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
