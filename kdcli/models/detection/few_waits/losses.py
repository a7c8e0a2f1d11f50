"""A step of one of torchvision's detectors, with a fixed number of waits for the device where it is known how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from kdcli.models.detection.few_waits import dense, faster_rcnn, ssd
from kdcli.models.detection.few_waits.running import as_written, running

KNOWN: dict[type[nn.Module], tuple[Callable[[Any], bool], Callable[..., Any]]] = {
    FasterRCNN: (faster_rcnn.known, faster_rcnn.forward),
    RetinaNet: (dense.retinanet_known, dense.retinanet),
    FCOS: (dense.fcos_known, dense.fcos),
    SSD: (ssd.known, ssd.ssd),
}
"""For each class whether a detector's parts are torchvision's own, and what takes the place of its forward."""


def losses_of(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
    """torchvision's losses of a detector in training, by name.

    images: [3, h, w] of each image. targets: `boxes` [n, 4] and `labels` [n] of each. The same bits as the detector's
    own forward on the CPU, and its own forward where the detector is another than torchvision makes, and for boxes
    that it refuses.
    """
    known, forward = KNOWN.get(type(detector), (None, None))
    if known is None or forward is None or torch.compiler.is_compiling():
        return detector(images, targets)
    if not (as_written(detector, type(detector)) and known(detector)) or _any_empty(targets):
        return detector(images, targets)
    with running(detector, partial(forward, detector)):
        return detector(images, targets)


def _any_empty(targets: list[dict[str, Tensor]]) -> bool:
    """Whether any box has no height or width; one wait for all images."""
    boxes = torch.cat([one["boxes"] for one in targets])
    return bool((boxes[:, 2:] <= boxes[:, :2]).any())
