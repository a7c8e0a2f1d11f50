"""Detection: anchors, targets, heads, post-processing; names of torchvision's detectors, without its import."""

from __future__ import annotations

FAMILIES = ("fasterrcnn", "retinanet", "fcos", "ssd")
"""How the names of torchvision's detectors begin."""

COCO_CLASSES = 91
"""Classes of a torchvision detector that is given no num_classes: COCO's category ids with gaps, and the background."""


def is_detector(kind: str) -> bool:
    """Whether a module's type is a whole detector of torchvision."""
    return kind.startswith(tuple(f"torchvision.{family}" for family in FAMILIES))
