"""A pass of one of torchvision's detectors with a fixed number of waits for the device, where it is known how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from kdcli.models.detection.few_waits import dense, faster_rcnn, found, ssd
from kdcli.models.detection.few_waits.running import as_written, running


@dataclass(frozen=True, slots=True)
class Steps:
    """Of one class of detectors: whether all parts are torchvision's own, the losses, the detections."""

    known: Callable[[Any], bool]
    losses: Callable[..., Any]
    found: Callable[..., Any]


STEPS: dict[type[nn.Module], Steps] = {
    FasterRCNN: Steps(faster_rcnn.known, faster_rcnn.forward, faster_rcnn.forward),
    RetinaNet: Steps(dense.retinanet_known, dense.retinanet, found.retinanet),
    FCOS: Steps(dense.fcos_known, dense.fcos, found.fcos),
    SSD: Steps(ssd.known, ssd.ssd, found.ssd),
}


def steps_of(detector: nn.Module) -> Steps | None:
    """What takes the place of the detector's forward; None where it is another than torchvision makes."""
    steps = STEPS.get(type(detector))
    if steps is None or torch.compiler.is_compiling():
        return None
    return steps if as_written(detector, type(detector)) and steps.known(detector) else None


def losses_of(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
    """torchvision's losses of a detector in training, by name.

    images: [3, h, w] of each image. targets: `boxes` [n, 4] and `labels` [n] of each. The same bits as the detector's
    own forward on the CPU; its own forward where the detector is another than torchvision makes, and for boxes
    that it refuses.
    """
    steps = steps_of(detector)
    if steps is None or _any_empty(targets):
        return detector(images, targets)
    with running(detector, partial(steps.losses, detector)):
        return detector(images, targets)


def detections_of(detector: nn.Module, images: list[Tensor]) -> Any:
    """torchvision's detections of each image in evaluation; on the CPU, where nothing waits, by its own forward."""
    steps = None if images[0].device.type == "cpu" else steps_of(detector)
    if steps is None:
        return detector(images)
    with running(detector, partial(steps.found, detector)):
        return detector(images)


def _any_empty(targets: list[dict[str, Tensor]]) -> bool:
    """Whether any box has no height or width; one wait for all images."""
    boxes = torch.cat([one["boxes"] for one in targets])
    return bool((boxes[:, 2:] <= boxes[:, :2]).any())
