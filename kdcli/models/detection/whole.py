"""Whole detectors of torchvision, fed with our batches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision.models.detection
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from kdcli.errors import did_you_mean
from kdcli.models.detection import COCO_CLASSES, FAMILIES
from kdcli.models.detection.boxes import beyond_last_pixel, numbers
from kdcli.models.detection.few_waits.steps import detections_of, losses_of
from kdcli.models.module import Outputs, ViewModule

ALIGNMENT = 32
"""torchvision pads images to a multiple of this."""

CLASSES: dict[str, Any] = dict(zip(FAMILIES, (FasterRCNN, RetinaNet, FCOS, SSD), strict=True))

PIXELS = frozenset(
    {"self", "kwargs", "progress", "backbone", "size", "min_size", "max_size", "image_mean", "image_std"}
)
"""What the data's transforms do in place of torchvision's, and what the name fixes."""


def detector_names() -> list[str]:
    """The detectors that torchvision builds by name; those for masks and key points are left out."""
    names = torchvision.models.list_models(module=torchvision.models.detection)
    return [name for name in names if name.startswith(FAMILIES)]


def build_detector(name: str, arguments: Mapping[str, Any], weights: Any) -> TorchvisionDetector:
    """A detector by name; random weights, the backbone's too, unless they are asked for.

    Raises ValueError on an argument that it has not, which torchvision's constructors may swallow.
    """
    known = argument_names(name)
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"it has no argument `{key}`" + (f"; {hint}" if hint else ""))
    given = {"weights_backbone": None, **arguments}
    made = torchvision.models.get_model(name, weights=weights, **given)
    return TorchvisionDetector(made, int(arguments.get("num_classes", COCO_CLASSES)))


def classes_of(module: nn.Module) -> int | None:
    """How many classes a detector of torchvision's has, with the background; None for any other module."""
    if isinstance(module, FasterRCNN):
        return int(module.roi_heads.box_predictor.cls_score.out_features)
    if isinstance(module, SSD):
        return int(module.head.classification_head.num_columns)
    return int(module.head.classification_head.num_classes) if isinstance(module, RetinaNet | FCOS) else None


def argument_names(name: str) -> list[str]:
    """What a detector takes; the size and normalisation of images are the data's, and left out."""
    family = next(kind for prefix, kind in CLASSES.items() if name.startswith(prefix))
    builder = torchvision.models.get_model_builder(name)
    found = {*inspect.signature(builder).parameters, *inspect.signature(family.__init__).parameters}
    return sorted(found - PIXELS)


class TorchvisionDetector(ViewModule):
    """A torchvision detector as one module, whose layers keep torchvision's paths (`backbone.fpn`, ...).

    Pixels come normalised and resized by the data's transforms; torchvision's own are not run. num_classes
    counts the background; where it counts the gaps between the data's category ids too, torchvision's
    labels are these ids. Training outputs torchvision's losses, each named `<what>_loss`; evaluation
    `dt_bboxes` [N, 7]: image, x1, y1, x2, y2, score, class from 1.
    """

    whole = True
    needs_values = True

    def __init__(self, detector: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        detector.transform = Batching()
        for name, child in detector.named_children():
            self.add_module(name, child)
        # In a tuple, so that the children are registered once, under torchvision's own paths.
        self._detector = (detector,)

    @property
    def detector(self) -> nn.Module:
        """torchvision's own module."""
        return self._detector[0]

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`, `image_info`; in training `boxes` too."""
        annotations = outputs.get("annotations", {})
        offset = int(annotations.get("box_offset", 0))
        lacking = [beyond_last_pixel(info, offset, outputs["image"]) for info in outputs["image_info"]]
        ids = self.ids_of(annotations.get("categories", ()))
        sizes = [(int(info[0]), int(info[1])) for info in outputs["image_info"]]
        images = [
            image[:, :height, :width] for image, (height, width) in zip(outputs["image"], sizes, strict=True)
        ]
        (detector,) = self._detector
        detector.training = self.training
        if self.training:
            targets = [
                _target(boxes, shift, ids) for boxes, shift in zip(outputs["boxes"], lacking, strict=True)
            ]
            losses: dict[str, Tensor] = losses_of(detector, images, targets)
            return {f"{name.removeprefix('loss_')}_loss": value for name, value in losses.items()}
        return {"dt_bboxes": _rows(detections_of(detector, images), lacking, ids)}

    def ids_of(self, categories: Sequence[int]) -> tuple[int, ...]:
        """The category of each label from 1 where labels are category ids, else none.

        torchvision's weights for COCO have 91 classes for its 80 categories, whose ids have gaps and end
        at 90.
        """
        ids = tuple(categories)
        by_id = bool(ids) and self.num_classes == max(ids) + 1 != len(ids) + 1
        return ids if by_id else ()


class Batching(nn.Module):
    """Stands where torchvision normalises and resizes: pads only, and leaves boxes where they are."""

    def __init__(self) -> None:
        super().__init__()
        self._pad = (GeneralizedRCNNTransform(1, 1, [0.0], [1.0], size_divisible=ALIGNMENT),)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Images [3, h, w] as one padded batch with their sizes."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return ImageList(self._pad[0].batch_images(images, ALIGNMENT), sizes), targets

    def postprocess(self, result: Any, image_sizes: Any, original_image_sizes: Any) -> Any:
        """The boxes as they are."""
        return result


def _target(boxes: Tensor, lacking: Tensor, ids: Sequence[int]) -> dict[str, Tensor]:
    labels = boxes[:, 4].to(torch.int64)
    return {"boxes": boxes[:, :4] + lacking, "labels": numbers(ids, labels)[labels - 1] if ids else labels}


def _rows(found: Sequence[Mapping[str, Tensor]], lacking: Sequence[Tensor], ids: Sequence[int]) -> Tensor:
    rows = []
    for image, (one, shift) in enumerate(zip(found, lacking, strict=True)):
        boxes = one["boxes"].float() - shift.float()
        ends = torch.stack([one["scores"].float(), _classes(one["labels"], ids).float()], dim=1)
        own = torch.cat([boxes.new_full((len(boxes), 1), image), boxes, ends], dim=1)
        rows.append(own[ends[:, 1] > 0] if ids else own)
    return torch.cat(rows)


def _classes(labels: Tensor, ids: Sequence[int]) -> Tensor:
    """Classes from 1 of labels that are category ids; 0 for an id that the annotations don't have."""
    if not ids:
        return labels
    return ((labels[:, None] == labels.new_tensor(ids)) * torch.arange(1, len(ids) + 1).to(labels)).sum(1)
