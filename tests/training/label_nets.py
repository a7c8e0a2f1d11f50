"""Tiny whole models for the tests: classes by shade of grey, and forwards that return tuples or probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Grey(nn.Module):
    """Tells images apart by their mean; the nearest of `centres` wins. Its logits come from one layer, `fc`."""

    def __init__(self, centres: list[float]) -> None:
        super().__init__()
        self.feature = nn.Identity()
        self.fc = nn.Linear(1, len(centres))
        values = torch.tensor(centres)
        with torch.no_grad():  # -50 (x - c)² without the x² that all classes share
            self.fc.weight.copy_(100.0 * values[:, None])
            self.fc.bias.copy_(-50.0 * values**2)

    def forward(self, image: Tensor) -> Any:
        logits: Tensor = self.fc(self.feature(image.mean((2, 3))))
        return logits


class Softmaxed(Grey):
    """Ends in a module that makes probabilities."""

    def __init__(self, centres: list[float]) -> None:
        super().__init__(centres)
        self.softmax = nn.Softmax(1)

    def forward(self, image: Tensor) -> Any:
        return self.softmax(super().forward(image))


class SoftmaxedInFull(Softmaxed):
    """Makes its probabilities in float32, as CUDA's autocast does."""

    def forward(self, image: Tensor) -> Any:
        return self.softmax(Grey.forward(self, image).float())


class Functional(Grey):
    """Ends in a function that makes probabilities."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image).softmax(1)


class LogSoftmaxed(Grey):
    def forward(self, image: Tensor) -> Any:
        return super().forward(image).log_softmax(1)


class Pair(nn.Module):
    """Two maps and the logits, as RepDistiller's networks return them with `is_feat`."""

    def __init__(self, num_classes: int = 4, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def run(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        first = self.conv1(image).relu()
        second = self.conv2(first).relu()
        return [first, second], self.fc(second.mean((2, 3)))

    def forward(self, image: Tensor) -> Any:
        return self.run(image)


class Triple(Pair):
    """(logits, features, something nobody needs)."""

    def forward(self, image: Tensor) -> Any:
        features, logits = self.run(image)
        return logits, tuple(features), image.mean()


class TrainsWithMore(Pair):
    """(logits, auxiliary logits) in training, the logits alone in evaluation."""

    def forward(self, image: Tensor) -> Any:
        _, logits = self.run(image)
        return (logits, logits * 2) if self.training else logits


class Mapped(Pair):
    """Maps, and probabilities of them."""

    def forward(self, image: Tensor) -> Any:
        return self.run(image)[1].softmax(1)


@dataclass
class Answer:
    logits: Tensor
    hidden: list[Tensor]
    attentions: Tensor | None = None


class Named(Pair):
    """A dataclass of outputs."""

    def forward(self, image: Tensor) -> Any:
        features, logits = self.run(image)
        return Answer(logits=logits, hidden=features)
