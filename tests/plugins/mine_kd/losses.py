"""Losses: one with a record, one without, one that is a module and waits for its own weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.spec.ranges import Range


def huber(student: Tensor, teacher: Tensor, *, beta: Annotated[float, Range(more_than=0)] = 1.0) -> Tensor:
    """Huber's distance of two features of one shape.

    Source: "Robust Estimation of a Location Parameter", 1964.
    """
    return F.smooth_l1_loss(student, teacher, beta=beta)


def softened(student_logits: Tensor, teacher_logits: Tensor, *, T: float = 2.0) -> Tensor:
    """Cross entropy of softened logits."""
    return F.cross_entropy(student_logits / T, (teacher_logits / T).softmax(1))


softened.kdcli_record = {"kind": "logit", "weight": 0.5, "softened": True}  # type: ignore[attr-defined]


class Scaled(nn.Module):
    """A loss with a parameter, that multiplies by its own weight, over all pairs at once."""

    kdcli_record: ClassVar[dict[str, Any]] = {"kind": "feature", "whole_list": True}

    def __init__(
        self, student_shape: Sequence[Sequence[int]], *, start: float = 1.0, loss_weight: float = 2.0
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((len(student_shape),), start))
        self.loss_weight = loss_weight

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        parts = [
            (one * k - two).square().mean() for one, two, k in zip(student, teacher, self.scale, strict=True)
        ]
        return self.loss_weight * torch.stack(parts).sum()


def unbound(x: Tensor, teacher: Tensor, *, beta: float = 1.0) -> Tensor:
    """A loss that names a tensor as nothing of a run is called."""
    return (x - teacher).abs().mean() * beta


def misspelt(student: Tensor, teacher: Tensor) -> Tensor:
    """A loss whose record has a slip."""
    return (student - teacher).abs().mean()


misspelt.kdcli_record = {"kind": "feature", "wieght": 2.0}  # type: ignore[attr-defined]
