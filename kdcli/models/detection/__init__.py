"""Detection: anchors, targets, heads and post-processing."""

FAMILIES = ("fasterrcnn", "retinanet", "fcos", "ssd")
"""How their names begin."""

COCO_CLASSES = 91
"""What one has that is given no num_classes: COCO's category ids, gaps included, and the background."""


def is_detector(kind: str) -> bool:
    """Whether a module's type is a whole detector of torchvision."""
    return kind.startswith(tuple(f"torchvision.{family}" for family in FAMILIES))
