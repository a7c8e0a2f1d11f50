"""L2 loss: squared distance of two features."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.reduce import broadcast_mask, per_count


@full_precision
def l2_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_weights: Tensor | None = None,
    *,
    feat_norm: bool = False,
    batch_mean: bool = False,
) -> Tensor:
    """Sum of squared differences divided by the number of unmasked elements, or by B.

    student, teacher: features [B, ...] of equal shape. mask: bool or weight, broadcast to that shape
    before it is counted (over all processes); nothing unmasked gives 0. feat_norm: each sample is
    flattened and divided by its L2 norm first, and a zero one stays 0. batch_mean: divide by B instead.
    teacher_weights: [B], multiplies each sample's part. A scalar; raises RunError where shapes differ.
    Under the key `loss` of the method `base` it takes feat_norm: true and batch_mean: true where its kwargs
    don't say (United-Perception's rule). Source: "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550.
    """
    equal_shapes(student, teacher, "l2_loss")
    weights = None if mask is None else broadcast_mask(mask, student)
    if feat_norm:
        student, teacher = normalized(student.flatten(1), teacher.flatten(1))
        weights = None if weights is None else weights.flatten(1)
    squares = (student - teacher).square()
    if weights is not None:
        squares = squares * weights
    if teacher_weights is not None:
        squares = squares * broadcast_mask(teacher_weights, squares)
    if batch_mean:
        loss = squares.sum() / student.shape[0]
    elif weights is None:
        loss = squares.sum() / squares.numel()
    else:
        loss = per_count(squares.sum(), weights.sum())
    return loss
