"""Losses of detection heads by the names of a spec: sums over what was sampled, divided by a count."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from kdcli.losses.parts.reduce import per_count
from kdcli.spec.ranges import NonNegative, Positive, Prior, Share, TaskWeight

IGNORED_TARGET = -1
"""The class of an anchor that counts in no loss; 0 is the background."""


class ClassLoss:
    """A classification loss over rows of logits [N, C] and classes [N], 0 the background.

    activation: sigmoid (C leaves the background out) or softmax. Rows of IGNORED_TARGET count for nothing.
    """

    activation: ClassVar[Literal["sigmoid", "softmax"]]

    def __init__(
        self, name: str | None = None, loss_weight: TaskWeight = 1.0, init_prior: Prior = 0.01
    ) -> None:
        self.loss_weight, self.init_prior = loss_weight, init_prior

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row, [N]; anything for an ignored one."""
        raise NotImplementedError(type(self).__name__)

    def __call__(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """Sum over the rows that count, over `count` (by default their number), over all processes."""
        counted = target != IGNORED_TARGET
        losses = torch.where(counted, self.rows(logits.float(), target), 0.0)
        return per_count(losses.sum(), counted.sum() if count is None else count) * self.loss_weight


class SoftmaxCrossEntropy(ClassLoss):
    """Cross entropy; class_dim and the like are accepted where they say what is so anyway."""

    activation = "softmax"

    def __init__(
        self,
        class_dim: Literal[-1, 1] = -1,
        name: str | None = None,
        loss_weight: TaskWeight = 1.0,
        ignore_index: Literal[-1] = -1,
        reduction: Literal["mean"] = "mean",
    ) -> None:
        super().__init__(name, loss_weight)
        as_they_are(
            class_dim=(class_dim, (-1, 1)),
            ignore_index=(ignore_index, (-1,)),
            reduction=(reduction, ("mean",)),
        )

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The cross entropy of each row in nats, [N]."""
        return F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED_TARGET)


class SigmoidCrossEntropy(ClassLoss):
    """Binary cross entropy of every class; of one class in the RPN."""

    activation = "sigmoid"

    def __init__(
        self,
        name: str | None = None,
        loss_weight: TaskWeight = 1.0,
        ignore_index: Literal[-1] = -1,
        reduction: Literal["mean"] = "mean",
        init_prior: Prior = 0.5,
    ) -> None:
        super().__init__(name, loss_weight, init_prior)
        as_they_are(ignore_index=(ignore_index, (-1,)), reduction=(reduction, ("mean",)))

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """Nats, summed over classes."""
        return F.binary_cross_entropy_with_logits(logits, one_hot(target, logits), reduction="none").sum(1)


class SigmoidFocal(ClassLoss):
    """Focal loss; the head divides it by the number of positives.

    Source: "Focal Loss for Dense Object Detection", arXiv:1708.02002.
    """

    activation = "sigmoid"

    def __init__(
        self,
        num_classes: int | None = None,
        alpha: Share = 0.25,
        gamma: NonNegative = 2.0,
        init_prior: Prior = 0.01,
        name: str | None = None,
        loss_weight: TaskWeight = 1.0,
        ignore_index: Literal[-1] = -1,
        reduction: Literal["mean"] = "mean",
    ) -> None:
        super().__init__(name, loss_weight, init_prior)
        as_they_are(ignore_index=(ignore_index, (-1,)), reduction=(reduction, ("mean",)))
        self.num_classes, self.alpha, self.gamma = num_classes, alpha, gamma

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """Nats, summed over classes."""
        losses: Tensor = sigmoid_focal_loss(logits, one_hot(target, logits), self.alpha, self.gamma)
        return losses.sum(1)


class L1:
    """Absolute differences, summed."""

    def __init__(
        self, name: str | None = None, loss_weight: TaskWeight = 1.0, reduction: Literal["mean"] = "mean"
    ) -> None:
        as_they_are(reduction=(reduction, ("mean",)))
        self.loss_weight = loss_weight

    def elements(self, student: Tensor, target: Tensor) -> Tensor:
        """The loss of each element."""
        return (student - target).abs()

    def __call__(self, student: Tensor, target: Tensor, count: Tensor) -> Tensor:
        """Sum over [P, 4] divided by count over all processes."""
        return per_count(self.elements(student.float(), target).sum(), count) * self.loss_weight


class SmoothL1(L1):
    """Quadratic below 1/sigma²."""

    def __init__(
        self,
        name: str | None = None,
        loss_weight: TaskWeight = 1.0,
        sigma: Positive = 1.0,
        reduction: Literal["mean"] = "mean",
    ) -> None:
        super().__init__(name, loss_weight, reduction)
        if sigma <= 0:
            raise ValueError("sigma is positive")
        self.beta = 1.0 / sigma**2

    def elements(self, student: Tensor, target: Tensor) -> Tensor:
        """The loss of each element."""
        return F.smooth_l1_loss(student, target, reduction="none", beta=self.beta)


CLASS_LOSSES: dict[str, Any] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "sigmoid_focal_loss": SigmoidFocal,
    "torch_sigmoid_focal_loss": SigmoidFocal,
}
LOCATION_LOSSES: dict[str, Any] = {"l1_loss": L1, "smooth_l1_loss": SmoothL1}


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """[N, C] in the dtype of `like`: 1 at class - 1, nothing for the background and ignored rows."""
    classes = torch.arange(1, like.shape[1] + 1, device=like.device)
    return (target[:, None] == classes).to(like.dtype)


def as_they_are(**arguments: tuple[Any, tuple[Any, ...]]) -> None:
    """Refuse values other than the ones there are."""
    for name, (value, allowed) in arguments.items():
        if value not in allowed:
            raise ValueError(f"`{name}` is {' or '.join(map(str, allowed))}, not `{value}`")
