"""How a detector is exported: images on one canvas in, boxes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.distill.deployed import DeployedStudent
from kdcli.errors import UsageError
from kdcli.models.network import Network
from kdcli.spec.schema import Spec
from kdcli.tasks.detection.portable import Detector
from kdcli.tasks.detection.sample import detection_sample
from kdcli.tasks.portable import Tensors

SCENES = 16
"""So many images, which take longer than those without boxes."""


class DetectorDeployment:
    """Proved on the first test images, padded right and below to what holds them, or to the size given."""

    sized = True

    def portable(self, spec: Spec, net: Network | DeployedStudent) -> Detector:
        """The detector."""
        assert isinstance(net, Network)
        return Detector(net, box_offset=0 if spec.runtime.aligned else 1)

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
        return [{**detection_sample(aligned=spec.runtime.aligned), "image": pixels, "image_info": info}]

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
