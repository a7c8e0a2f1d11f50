"""Softmax regression: the student's feature has to mean the same to the teacher's classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.parts.inputs import (
    as_map,
    as_vectors,
    check_classifier,
    enough_values,
    full_precision,
    map_shape,
)
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Weight


class SoftmaxRegression(StatefulLoss):
    """alpha·MSE(P(s), t) + beta·MSE(classifier(P(s)), teacher's logits) (SRRL), each averaged.

    P is a trained 1×1 convolution without bias, batch norm and ReLU; P(s) and t are averaged over their
    positions before they are compared and before the teacher's frozen classifier, which maps vectors
    [B, C] to logits. Features are maps (sizes may differ), tokens or vectors.
    Taps: the last map before pooling, or the pooled vector.
    Source: "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        teacher_classifier: nn.Module,
        *,
        alpha: Weight = 1.0,
        beta: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        s_channels, t_channels = map_shape(student_shape, "srrl")[1], map_shape(teacher_shape, "srrl")[1]
        check_classifier(teacher_classifier, t_channels, "srrl")
        conv = nn.Conv2d(s_channels, t_channels, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / t_channels))
        self.projector = nn.Sequential(conv, nn.BatchNorm2d(t_channels), nn.ReLU())
        self.teacher_classifier = teacher_classifier.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """The teacher's classifier stays in evaluation mode."""
        super().train(mode)
        self.teacher_classifier.eval()
        return self

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, teacher_logits: Tensor) -> Tensor:
        """A scalar."""
        feature = as_map(student, "srrl")
        if self.training:
            enough_values(feature.numel() // feature.shape[1], "srrl")
        vectors = self.projector(feature).flatten(2).mean(2)
        matching = F.mse_loss(vectors, as_vectors(teacher, "srrl"))
        regression = F.mse_loss(self.teacher_classifier(vectors), teacher_logits)
        return self.alpha * matching + self.beta * regression
