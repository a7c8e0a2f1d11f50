"""A student as one function of tensors, without anything that serves training alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdcli.data.facts import DataFacts
from kdcli.distill.deployed import DeployedStudent
from kdcli.errors import RunError
from kdcli.models.detection.deploy.detector import OUTPUTS, DeployedDetector
from kdcli.models.detection.deploy.whole import eager_rows, is_known
from kdcli.models.detection.whole import TorchvisionDetector
from kdcli.models.network import Network

Tensors = tuple[Tensor, ...]


class Portable(nn.Module):
    """What is exported. Takes the network over.

    inputs, outputs: their names. forward is what exporters follow; eager what the student itself answers,
    with which every file is compared.
    """

    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    net: Network | DeployedStudent

    @abstractmethod
    def eager(self, *inputs: Tensor) -> Tensors:
        """The student's own answer."""

    @property
    def followed(self) -> bool:
        """Whether a graph can be made of it."""
        return True

    def class_names(self, facts: DataFacts) -> tuple[str, ...] | None:
        """What the classes of the answer are called, in order."""
        return facts.class_names

    def warm_up(self, *inputs: Tensor) -> Portable:
        """Run once, so that what is made on first use is there; returns itself."""
        with torch.no_grad():
            self.eager(*inputs)
        return self


class Classifier(Portable):
    """image [B, C, H, W], normalised as in training -> logits [B, K]."""

    inputs = ("image",)
    outputs = ("logits",)

    def __init__(self, net: Network | DeployedStudent) -> None:
        super().__init__()
        if isinstance(net, Network):
            _without_training_only(net)
        else:
            # Exporters can't leave a module midway; what comes after the tap is dead code to them.
            net.taps.require([net.tap], None)
        self.net = net
        self.width: int | None = None
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        logits = self.net({"image": image})["logits"]
        assert isinstance(logits, Tensor)
        return logits

    def eager(self, *inputs: Tensor) -> Tensors:
        """The logits."""
        logits = self.forward(*inputs)
        self.width = logits.shape[1]
        return (logits,)

    def class_names(self, facts: DataFacts) -> tuple[str, ...] | None:
        """One for each logit; raises RunError KD764 where there is another number of them."""
        names = facts.class_names
        if names is not None and self.width is not None and len(names) != self.width:
            raise RunError.of(
                "KD764",
                f"the student gives {self.width} logits, and its data has {len(names)} classes",
                "whoever reads the file would meet logits without a name: train with "
                f"`num_classes: {len(names)}`",
            )
        return names


class Detector(Portable):
    """image [B, 3, H, W] and image_size [B, 2] -> boxes, scores, labels, image_index (DeployedDetector).

    box_offset: 1 where the data's boxes count their last pixels.
    """

    inputs = ("image", "image_size")
    outputs = OUTPUTS

    def __init__(self, net: Network, box_offset: int) -> None:
        super().__init__()
        _without_training_only(net)
        self.net = net
        self.box_offset = box_offset
        # In a tuple, so that its parameters are registered once.
        self._graph = (DeployedDetector(net),)
        self.eval()

    @property
    def followed(self) -> bool:
        """Whether all that makes boxes is known in a form that a graph can have."""
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


def _without_training_only(net: Network) -> None:
    for name in net.training_only():
        delattr(net, name)
