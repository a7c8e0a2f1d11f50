"""Code that fails: once it is built, in a later step, in a data worker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CALLS = {"loss": 0}


def late(student: Tensor, teacher: Tensor, *, calls: int = 6) -> Tensor:
    """A distance that fails once it has been asked a few times."""
    CALLS["loss"] += 1
    if CALLS["loss"] > calls:
        raise KeyError("late")
    return F.mse_loss(student, teacher)


class Forgetful(nn.Module):
    """A loss that fails while it is made."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = [scale][1]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance, scaled."""
        return F.mse_loss(student, teacher) * self.scale


class Optimizer(torch.optim.SGD):
    """SGD whose steps fail."""

    def step(self, closure: Any = None) -> Any:
        """Fail."""
        raise ZeroDivisionError("step")


class Transform:
    """A transform that fails on every image."""

    def __call__(self, image: Tensor) -> Tensor:
        """Fail."""
        raise LookupError("image")


class Metric:
    """A metric whose primary value it does not give, or that takes the task's own name."""

    primary = "macro"

    def __init__(self, *, name: str = "mac") -> None:
        self.name = name

    def update(self, outputs: Any, batch: Any) -> None:
        """Nothing."""

    def sums(self) -> Tensor:
        """One number."""
        return torch.zeros(1)

    def result(self, sums: Tensor) -> dict[str, float]:
        """One value by another name."""
        return {self.name: 1.0, **({"macro": 0.0} if self.name != "mac" else {})}


class Labelled:
    """Grey images of four classes, one of them with the label that is asked for."""

    classes = ("a", "b", "c", "d")

    def __init__(self, *, label: Any = 9) -> None:
        self.label = label

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.zeros(1, 8, 8, dtype=torch.uint8), self.label if index == 5 else index % 4
