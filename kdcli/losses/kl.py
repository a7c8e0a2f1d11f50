"""KL loss: two rectified features as distributions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.logits import kl_rows

EPSILON = 1e-6


@full_precision
def kl_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    norm: Literal["softmax", "l2"] = "softmax",
) -> Tensor:
    """KL(teacher ‖ student) of the features after ReLU, in nats.

    student, teacher: [B, C, ...] of equal shape. norm `softmax`: distributions over axis 1, summed over
    the other axes and divided by B. norm `l2`: each whole tensor divided by its sum is one
    distribution, 1e-6 is added to both inside the logarithm, and the sum is not divided; it relates the
    batch of one process. A scalar; raises RunError where shapes differ.
    Source: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    equal_shapes(student, teacher, "kl_loss")
    student, teacher = student.relu(), teacher.relu()
    if norm == "softmax":
        loss = kl_rows(student.log_softmax(1), teacher.log_softmax(1)).sum() / student.shape[0]
    else:
        assert norm == "l2", norm
        s, t = _share(student), _share(teacher)
        loss = (t * ((t + EPSILON) / (s + EPSILON)).log()).sum()
    return loss


def _share(feature: Tensor) -> Tensor:
    total = feature.sum()
    return feature / torch.where(total == 0, torch.ones_like(total), total)
