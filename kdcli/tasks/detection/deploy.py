"""How a detector is exported: images on one canvas in, boxes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.distill.trainee import DeployedStudent
from kdcli.errors import RunError, UsageError
from kdcli.models.detection.deploy.detector import OUTPUTS, DeployedDetector
from kdcli.models.detection.deploy.whole import eager_rows, is_known
from kdcli.models.detection.whole import TorchvisionDetector
from kdcli.models.network import Network
from kdcli.spec.schema import LayoutSpec, Spec
from kdcli.tasks.task import ComparedOutputs, Portable, Tensors, without_training_only

SCENES = 16
"""On how many test images a file is proved: they take longer than a classifier's."""


class DetectorDeployment:
    """Exports the detector, and proves the file on the first test images; sample: makes a batch up.

    The images are padded right and below to what holds all of them, or to the size given.
    """

    sized = True

    def __init__(self, sample: Callable[..., dict[str, Any]]) -> None:
        self.sample = sample

    def portable(self, net: Network | DeployedStudent, *, aligned: bool) -> Detector:
        """The detector."""
        assert isinstance(net, Network)
        return Detector(net, box_offset=0 if aligned else 1)

    def backbone(
        self,
        spec: Spec,
        net: Network | DeployedStudent,
        untrained: Sequence[str],
        stated: Mapping[str, LayoutSpec],
    ) -> Portable:
        """Raises RunError KD244: a detector is not exported without its head."""
        raise RunError.of(
            "KD244",
            "nothing has trained the detector's head, so there is no detector to export",
            "take the run's student.safetensors as `saver.pretrain_model` of a training with labels",
        )

    def taken(self, batches: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Batches until there are enough images."""
        found: list[Mapping[str, Any]] = []
        for batch in batches:
            found.append(batch)
            if sum(len(one["image"]) for one in found) >= SCENES:
                break
        return found

    def made_up(self, spec: Spec, facts: DataFacts, size: tuple[int, int] | None) -> list[Mapping[str, Any]]:
        """Two images of random pixels; UsageError without a size."""
        if size is None:
            raise UsageError.of(
                "the test data can't be read, so the detector's input size is not known",
                "give it: `--input-size 800x1344`",
            )
        height, width = (float(side) for side in size)
        pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        info = [(height, width, 1.0, 1.0, height, width)] * 2
        return [{**self.sample(aligned=spec.runtime.aligned), "image": pixels, "image_info": info}]

    def inputs(self, batches: Sequence[Mapping[str, Any]], size: tuple[int, int] | None) -> Tensors:
        """A canvas [B, C, H, W] and the height and width [B, 2] of each image without padding."""
        pictures: list[Tensor] = []
        padding = (1, 1)
        for batch in batches:
            padding = tuple(max(a, b) for a, b in zip(padding, batch["image"].shape[2:], strict=True))
            for image, info in zip(batch["image"], batch["image_info"], strict=True):
                pictures.append(image[:, : int(info[0]), : int(info[1])])
        pictures = (pictures if len(pictures) > 1 else pictures * 2)[:SCENES]
        height, width = size or padding
        tallest, widest = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
        if tallest > height or widest > width:
            raise UsageError.of(
                f"test images of up to {tallest}x{widest} don't fit into `--input-size {height}x{width}`",
                "give the size that holds all of them, or resize in the spec's transformer",
            )
        canvas = torch.zeros(len(pictures), pictures[0].shape[0], height, width)
        for row, picture in zip(canvas, pictures, strict=True):
            row[:, : picture.shape[1], : picture.shape[2]] = picture
        sizes = torch.tensor([[float(side) for side in picture.shape[1:]] for picture in pictures])
        return canvas, sizes


LABELS = "labels are indices into class_names, from 0; boxes are x1, y1, x2, y2 in pixels of the input"

NEAR_PIXELS = 1.0
NEAR_SHARE = 0.05
"""Boxes of one class count as the same where no edge differs by more than this, in pixels plus in sides."""

ALONE = 0.02
MANY = 20
"""So large a share of the boxes, or a single one of many, may have no counterpart: rounding decides among equal
scores, and at thresholds."""


class Detector(Portable):
    """image [B, 3, H, W] and image_size [B, 2] -> boxes, scores, labels, image_index (DeployedDetector).

    box_offset: 1 where the data's boxes count their last pixels.
    """

    inputs = ("image", "image_size")
    outputs = OUTPUTS
    says = MappingProxyType({"labels": LABELS})

    def __init__(self, net: Network, box_offset: int) -> None:
        super().__init__()
        without_training_only(net)
        self.net = net
        self.box_offset = box_offset
        # In a tuple, so that its parameters are registered once.
        self._graph = (DeployedDetector(net),)
        self.eval()

    @property
    def followed(self) -> bool:
        """Whether exporters can make a graph: all modules that make boxes have a form of fixed sizes."""
        return DeployedDetector.follows(self.net)

    def class_names(self, facts: DataFacts) -> tuple[str, ...] | None:
        """The categories; where labels are category ids, those that the data lacks are called `N/A`."""
        names = facts.class_names
        whole = next((m for m in self.net.children() if isinstance(m, TorchvisionDetector)), None)
        ids = () if whole is None else whole.ids_of((facts.annotations or {}).get("categories", ()))
        if not ids or names is None:
            return names
        known = dict(zip(ids, names, strict=True))
        return tuple(known.get(number, "N/A") for number in range(1, max(ids) + 1))

    def compared(self, expected: Tensors, found: Tensors) -> ComparedOutputs:
        """Boxes and scores of the boxes that are the same in both; a file may have few others."""
        pairs, boxes, alone = _matched(expected, found)
        refuse_strangers(boxes, alone)
        return ComparedOutputs(pairs, boxes, alone)

    def forward(self, image: Tensor, image_size: Tensor) -> Tensors:
        """The boxes, in the form that exporters can follow."""
        return self._graph[0].forward(image, image_size)

    def eager(self, *inputs: Tensor) -> Tensors:
        """The boxes by the network's own modules."""
        image, image_size = inputs
        sides = [(float(h), float(w)) for h, w in image_size.tolist()]
        batch: dict[str, Any] = {
            "image": image,
            "image_info": [(h, w, 1.0, 1.0, h, w) for h, w in sides],
            "annotations": {"box_offset": self.box_offset},
        }
        whole = next((module for module in self.net.children() if is_known(module)), None)
        if isinstance(whole, TorchvisionDetector):
            # torchvision pads to what a batch needs; a file pads to its one size, and that changes borders.
            rows = eager_rows(whole, image, [(int(h), int(w)) for h, w in sides])
            return rows[:, 1:5], rows[:, 5], rows[:, 6].long() - 1, rows[:, 0].long()
        rows = self.net(batch)["dt_bboxes"].float()
        edges = rows[:, 1:5] + rows.new_tensor([0.0, 0.0, self.box_offset, self.box_offset])
        return edges, rows[:, 5], rows[:, 6].long() - 1, rows[:, 0].long()


def _matched(expected: Tensors, found: Tensors) -> tuple[list[tuple[str, Tensor, Tensor]], int, int]:
    """Boxes and scores of the pairs, how many boxes there are, and how many have no counterpart."""
    used = torch.zeros(len(found[0]), dtype=torch.bool)
    rows: list[int] = []
    partners: list[int] = []
    kin = (expected[2][:, None] == found[2]) & (expected[3][:, None] == found[3])
    sides = (expected[0][:, 2:] - expected[0][:, :2]).amax(1)
    for row in expected[1].argsort(descending=True, stable=True).tolist():
        apart = (found[0] - expected[0][row]).abs().amax(1)
        near = kin[row] & ~used & (apart <= NEAR_PIXELS + NEAR_SHARE * sides[row])
        worse = apart + (found[1] - expected[1][row]).abs()
        if bool(near.any()):
            best = int(torch.where(near, worse, float("inf")).argmin())
            used[best] = True
            rows.append(row)
            partners.append(best)
    pairs = [
        ("boxes", expected[0][rows], found[0][partners]),
        ("scores", expected[1][rows], found[1][partners]),
    ]
    total = max(len(expected[0]), len(found[0]))
    return pairs, total, total - len(rows)


def refuse_strangers(boxes: int, alone: int) -> None:
    """RunError KD761 where so many of the boxes have no counterpart."""
    if alone > max(ALONE * boxes, 1 if boxes >= MANY else 0):
        raise RunError.of(
            "KD761",
            f"the exported file finds other boxes: of {boxes} boxes {alone} have no counterpart; no file is left",
            "try another format",
        )
