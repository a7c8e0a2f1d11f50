"""Binary cross entropy between probabilities."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.reduce import broadcast_mask, per_count
from kdcli.spec.ranges import Temperature


@full_precision
def bce_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    T: Temperature = 1.0,
    batch_mean: bool = False,
    from_logits: bool = False,
) -> Tensor:
    """Binary cross entropy of student against teacher, divided by the number of unmasked elements, or by B.

    student, teacher: probabilities in [0, 1] of equal shape; with from_logits logits, which are divided
    by T and passed through a sigmoid first (T does nothing otherwise, and no T² factor is applied).
    mask: bool or weight, broadcast to the shape before it is counted (over all processes); nothing
    unmasked gives 0. A scalar, in nats; raises RunError where shapes differ.
    Source: "Distilling Object Detectors with Feature Richness", arXiv:2111.00674.
    """
    equal_shapes(student, teacher, "bce_loss")
    if from_logits:
        # The complement of a score is the sigmoid of the negated logit: one minus a score of 20 would be 0.
        s, t = student / T, teacher / T
        entropy = -(t.sigmoid() * F.logsigmoid(s) + (-t).sigmoid() * F.logsigmoid(-s))
    else:
        entropy = F.binary_cross_entropy(student, teacher, reduction="none")
    weights = None if mask is None else broadcast_mask(mask, entropy)
    total = (entropy if weights is None else entropy * weights).sum()
    if batch_mean:
        loss = total / student.shape[0]
    elif weights is None:
        loss = total / entropy.numel()
    else:
        loss = per_count(total, weights.sum())
    return loss
