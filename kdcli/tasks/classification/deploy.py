"""How a classifier is exported: images in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.distill.deployed import DeployedStudent
from kdcli.errors import RunError
from kdcli.models.network import Network
from kdcli.spec.schema import DataPart, Spec
from kdcli.tasks.task import Portable, Tensors, without_training_only


class Classifier(Portable):
    """image [B, C, H, W], normalised as in training -> logits [B, K]."""

    inputs = ("image",)
    outputs = ("logits",)

    def __init__(self, net: Network | DeployedStudent) -> None:
        super().__init__()
        if isinstance(net, Network):
            without_training_only(net)
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


class ClassifierDeployment:
    """Exports the classifier, and proves the file on the first batch of test images; sample: makes a batch up."""

    sized = False

    def __init__(self, sample: Callable[[DataPart, DataFacts], dict[str, Any]]) -> None:
        self.sample = sample

    def portable(self, spec: Spec, net: Network | DeployedStudent) -> Classifier:
        """The classifier."""
        return Classifier(net)

    def taken(self, batches: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The first batch; a single image twice, since a batch of one would make exporters fix the size."""
        first = list(islice(batches, 1))
        if first and len(first[0]["image"]) == 1:
            return [{k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in first[0].items()}]
        return first

    def made_up(self, spec: Spec, facts: DataFacts, size: tuple[int, int] | None) -> list[Mapping[str, Any]]:
        """Two images of random pixels."""
        batch = self.sample(spec.dataset.test, facts)
        batch["image"] = torch.rand(batch["image"].shape, generator=torch.Generator().manual_seed(0))
        return [batch]

    def inputs(self, batches: Sequence[Mapping[str, Any]], size: tuple[int, int] | None) -> Tensors:
        """The images."""
        return (batches[0]["image"],)
