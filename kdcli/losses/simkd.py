"""SimKD: the student's last map brought to the teacher's, whose classifier it then uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.parts.inputs import (
    check_classifier,
    enough_values,
    full_precision,
    only_maps,
    pooled,
    same_size,
)
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count


class ReusedClassifier(nn.Module):
    """What the distilled student ends in: its last map [B, C, H, W] to logits.

    The map is averaged down to `size` (height, width) where it is larger, projected, averaged over its
    positions and classified by the teacher's classifier.
    """

    def __init__(self, projector: nn.Module, classifier: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.projector = projector
        self.classifier = classifier
        self.size = size

    def forward(self, student: Tensor) -> Tensor:
        """Logits [B, K]."""
        height, width = min(student.shape[2], self.size[0]), min(student.shape[3], self.size[1])
        logits: Tensor = self.classifier(self.projector(pooled(student, height, width)).mean((2, 3)))
        return logits


class SimKD(StatefulLoss):
    """Mean squared error between the projected last map of the student and the teacher's (SimKD).

    The projector is 1×1, 3×3 and 1×1 convolutions without bias, each with batch norm and ReLU, through
    the teacher's channels ÷ factor; the larger map is averaged down to the smaller. The student's own
    classifier gets no gradient: set `task_loss: false`. What is evaluated and exported is the student up
    to this layer with `student_end()` on top.
    Taps: the last map before pooling.
    Source: "Knowledge Distillation with the Reused Teacher Classifier", arXiv:2203.14001.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        teacher_classifier: nn.Module,
        *,
        factor: Count = 2,
    ) -> None:
        super().__init__()
        s_channels = only_maps(student_shape, "simkd")[1]
        _, t_channels, height, width = only_maps(teacher_shape, "simkd")
        check_classifier(teacher_classifier, t_channels, "simkd")
        self.size = (height, width)
        middle = t_channels // factor
        self.projector = nn.Sequential(
            nn.Conv2d(s_channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, t_channels, 1, bias=False),
            nn.BatchNorm2d(t_channels),
            nn.ReLU(),
        )
        self.teacher_classifier = teacher_classifier.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """The teacher's classifier stays in evaluation mode."""
        super().train(mode)
        self.teacher_classifier.eval()
        return self

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar, averaged over all elements."""
        student, teacher = same_size(student, teacher)
        if self.training:
            enough_values(student.numel() // student.shape[1], "simkd")
        return F.mse_loss(self.projector(student), teacher)

    def student_end(self) -> nn.Module:
        """The student's new end, from its tapped map to logits; shares its weights with this loss."""
        return ReusedClassifier(self.projector, self.teacher_classifier, self.size)
