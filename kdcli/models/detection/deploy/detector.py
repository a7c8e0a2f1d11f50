"""A detector as one function from images to boxes, which exporters can follow."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.models.detection.bbox_post import BboxPost
from kdcli.models.detection.dense_post import RetinaPost
from kdcli.models.detection.deploy.candidates import PRESENT, Candidates
from kdcli.models.detection.deploy.dense import dense_boxes
from kdcli.models.detection.deploy.second_stage import classified, pooled
from kdcli.models.detection.deploy.whole import is_known, whole_boxes
from kdcli.models.detection.roi_pre import BboxFCPre
from kdcli.models.detection.whole import TorchvisionDetector
from kdcli.models.network import Network

OUTPUTS = ("boxes", "scores", "labels", "image_index")


class DeployedDetector(nn.Module):
    """The network's own modules; those that make boxes run in fixed sizes. Takes the network over.

    forward(image [B, 3, H, W], normalised and padded right and below, image_size float [B, 2]: height and
    width of each image without its padding) -> boxes float32 [N, 4] (x1, y1, x2, y2 in pixels, edges),
    scores [N], labels int64 [N] from 0, image_index int64 [N]: which image of the batch; images in order,
    best first.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net.eval()

    @staticmethod
    def follows(net: nn.Module) -> bool:
        """Whether all that makes boxes in this network is known here."""
        return isinstance(net, Network) and any(
            isinstance(child, (RetinaPost, BboxPost)) or is_known(child) for child in net.children()
        )

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The boxes of the batch."""
        seen: dict[str, Any] = {"image": image, "image_size": image_size}
        found: Candidates | None = None
        offset = 0
        for module in self.net.children():
            if isinstance(module, RetinaPost):
                found, offset = dense_boxes(module, seen), module.offset
            elif isinstance(module, BboxFCPre):
                assert found is not None
                seen.update(pooled(module, found, seen))
            elif isinstance(module, BboxPost):
                assert found is not None
                found, offset = classified(module, found, seen), module.predictor.offset
            elif isinstance(module, TorchvisionDetector):
                found, offset = whole_boxes(module, image, image_size), 0
            else:
                seen.update(module(MappingProxyType(seen)))
        assert found is not None
        return _listed(found, offset)


def _listed(found: Candidates, offset: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The boxes that are there, one after the other."""
    scores = found.scores.flatten(1)
    there = torch.nonzero(scores.flatten() > PRESENT).flatten()
    boxes = found.boxes.flatten(0, 2)[there]
    boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset]) if offset else boxes
    images = torch.div(there, scores.shape[1], rounding_mode="floor")
    return boxes, scores.flatten()[there], found.labels.flatten()[there], images
