"""A student as one function of tensors, without anything that serves training alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcli.data.facts import DataFacts
from kdcli.distill.deployed import DeployedStudent
from kdcli.models.network import Network

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two answers side by side: what is the same thing in both, by name, the student's first.

    boxes: how many there are, None where the answers have no boxes; alone: how many have no counterpart.
    """

    pairs: Sequence[tuple[str, Tensor, Tensor]]
    boxes: int | None = None
    alone: int = 0


class Portable(nn.Module):
    """What is exported. Takes the network over.

    inputs, outputs: their names. says: what else whoever runs the file must know, by key. forward is what
    exporters follow; eager what the student itself answers, with which every file is compared.
    """

    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    says: ClassVar[Mapping[str, str]] = {}
    net: Network | DeployedStudent

    @abstractmethod
    def eager(self, *inputs: Tensor) -> Tensors:
        """The student's own answer."""

    def compared(self, expected: Tensors, found: Tensors) -> Compared:
        """The student's own answer and a file's; raises RunError KD761 where they are about other things."""
        return Compared(list(zip(self.outputs, expected, found, strict=True)))

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


def without_training_only(net: Network) -> None:
    """Take out the modules that serve training alone."""
    for name in net.training_only():
        delattr(net, name)
