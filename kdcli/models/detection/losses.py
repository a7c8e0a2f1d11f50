"""Losses of detection heads by the names of a spec: sums over what was sampled, divided by a count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from kdcli.losses.parts.reduce import distributed, global_count, per_count
from kdcli.models.detection.blocks import build_block
from kdcli.models.detection.boxes import decode, denormalized
from kdcli.spec.ranges import Focus, Positive, Prior, Share, TaskWeight

IGNORED_TARGET = -1
"""The class of an anchor that counts in no loss; 0 is the background."""


class ClassLoss:
    """A classification loss over rows of logits [N, C] and classes [N], 0 the background.

    activation: sigmoid (C leaves the background out) or softmax. Rows of IGNORED_TARGET count for nothing.
    """

    activation: ClassVar[Literal["sigmoid", "softmax"]]
    by_overlap: ClassVar[bool] = False
    """Whether the target of a positive row is its box's overlap with its object, rather than 1."""

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

    def of_targets(self, logits: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """Sum over logits [N] against targets [N] in 0..1, divided by count over all processes."""
        losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")
        return per_count(losses, count) * self.loss_weight


class SigmoidFocal(ClassLoss):
    """Focal loss; the head divides it by the number of positives.

    Source: "Focal Loss for Dense Object Detection", arXiv:1708.02002.
    """

    activation = "sigmoid"

    def __init__(
        self,
        num_classes: int | None = None,
        alpha: Share = 0.25,
        gamma: Focus = 2.0,
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


class QualityFocal(ClassLoss):
    """Focal loss whose target is the overlap of the predicted box with its object in place of 1.

    Each logit's binary cross entropy times |sigmoid - target|^gamma; the head divides it by the number of
    positives. dynamic_normalizer: divided by 0.5 · (the sum of (1 - sigmoid)^gamma over the positives' own
    classes + the sum of sigmoid^gamma over all other logits) instead, at least 1.
    Source: "Generalized Focal Loss", arXiv:2006.04388.
    """

    activation = "sigmoid"
    by_overlap = True

    def __init__(
        self,
        gamma: Focus,
        init_prior: Prior = 0.01,
        name: str | None = None,
        loss_weight: TaskWeight = 1.0,
        ignore_index: Literal[-1] = -1,
        dynamic_normalizer: bool = False,
        use_sigmoid: Literal[True] = True,
        reduction: Literal["mean"] = "mean",
    ) -> None:
        super().__init__(name, loss_weight, init_prior)
        as_they_are(
            ignore_index=(ignore_index, (-1,)),
            use_sigmoid=(use_sigmoid, (True,)),
            reduction=(reduction, ("mean",)),
        )
        self.gamma, self.dynamic = gamma, dynamic_normalizer

    def __call__(
        self, logits: Tensor, target: Tensor, count: Tensor | None = None, overlaps: Tensor | None = None
    ) -> Tensor:
        """overlaps: [N] in 0..1, of which those of positive rows are read."""
        assert overlaps is not None
        logits = logits.float()
        own = one_hot(target, logits)
        scores = logits.sigmoid()
        wanted = own * overlaps[:, None]
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        losses = entropy * (scores - wanted).abs().pow(self.gamma)
        counted = target != IGNORED_TARGET
        total = torch.where(counted[:, None], losses, 0.0).sum()
        if self.dynamic:
            count = at_least_one(self._normalizer(scores.detach(), own, counted))
        return per_count(total, counted.sum() if count is None else count) * self.loss_weight

    def _normalizer(self, scores: Tensor, own: Tensor, counted: Tensor) -> Tensor:
        amount = torch.where(own > 0, 1 - scores, scores).pow(self.gamma)
        return 0.5 * torch.where(counted[:, None], amount, 0.0).sum()


@dataclass(frozen=True, slots=True)
class Moved:
    """The boxes [P, 4] that deltas move, and how: `offset` of the geometry, means and stds of the deltas.

    weights: [P], what each box counts for in an overlap's loss; None: 1.
    """

    boxes: Tensor
    offset: int
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    weights: Tensor | None = None

    def by(self, deltas: Tensor) -> Tensor:
        """Where deltas [P, 4] move the boxes."""
        return decode(self.boxes, denormalized(deltas, self.means, self.stds), self.offset)


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

    def __call__(self, student: Tensor, target: Tensor, count: Tensor, moved: Moved) -> Tensor:
        """Sum over deltas [P, 4] divided by count over all processes."""
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


OverlapLoss = Literal["iou", "linear_iou", "square_iou", "giou", "diou", "ciou", "eiou", "siou"]


class IouLoss:
    """What the boxes, where the deltas move them, lack in overlap with their objects.

    loss_type: iou -log(IoU), linear_iou 1 - IoU, square_iou 1 - IoU², and 1 less the measure of the name for
    giou, diou, ciou, eiou, siou. As in United-Perception a union counts for at least one square pixel, and
    eiou's measure is multiplied by the IoU.
    """

    def __init__(
        self,
        name: str | None = None,
        loss_weight: TaskWeight = 1.0,
        loss_type: OverlapLoss = "iou",
        reduction: Literal["mean"] = "mean",
    ) -> None:
        as_they_are(reduction=(reduction, ("mean",)))
        if loss_type not in get_args(OverlapLoss):
            raise ValueError(f"`loss_type` is one of {', '.join(get_args(OverlapLoss))}, not `{loss_type}`")
        self.loss_weight, self.loss_type = loss_weight, loss_type

    def __call__(self, student: Tensor, target: Tensor, count: Tensor, moved: Moved) -> Tensor:
        """Sum over the boxes of deltas [P, 4], each times its weight, divided by count over all processes."""
        losses = self.of_boxes(moved.by(student.float()), moved.by(target.float()), moved.offset)
        if moved.weights is not None:
            losses = losses * moved.weights
        return per_count(losses.sum(), count) * self.loss_weight

    def of_boxes(self, boxes: Tensor, objects: Tensor, offset: int) -> Tensor:
        """The loss of each box [P, 4] against the object in its row, [P]."""
        if self.loss_type == "iou":
            return -similarity("iou", boxes, objects, offset).clamp(min=1e-6).log()
        if self.loss_type == "square_iou":
            return 1 - similarity("iou", boxes, objects, offset).square()
        return 1 - similarity(self.loss_type.removeprefix("linear_"), boxes, objects, offset)


def similarity(kind: str, boxes: Tensor, objects: Tensor, offset: int) -> Tensor:
    """How well boxes [P, 4] lie on the objects in their rows, [P]: iou, giou, diou, ciou, eiou or siou.

    All are 1 where both are equal and larger than a pixel. Sources: arXiv:1902.09630 (giou), 1911.08287
    (diou, ciou), 2101.08158 (eiou), 2205.12740 (siou).
    """
    low, high = torch.max(boxes[:, :2], objects[:, :2]), torch.min(boxes[:, 2:], objects[:, 2:])
    outer_low, outer_high = torch.min(boxes[:, :2], objects[:, :2]), torch.max(boxes[:, 2:], objects[:, 2:])
    sides, object_sides = (b[:, 2:] - b[:, :2] + offset for b in (boxes, objects))
    shared = (high - low + offset).clamp(min=0).prod(1)
    union = sides.prod(1) + object_sides.prod(1) - shared
    overlap = shared / union.clamp(min=1)
    if kind == "iou":
        return overlap
    outer = (outer_high - outer_low + offset).clamp(min=0)
    if kind == "giou":
        area = outer.prod(1) + EPSILON
        return overlap - (area - union) / area
    shift = ((objects[:, :2] + objects[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2
    if kind == "siou":
        return overlap - 0.5 * _siou_penalty(shift, sides, object_sides, outer - offset)
    near = overlap - shift.square().sum(1) / (outer.square().sum(1) + EPSILON)
    if kind == "ciou":
        angles = [torch.atan(s[:, 0] / (s[:, 1] + EPSILON)) for s in (object_sides, sides)]
        unlike = 4 / math.pi**2 * (angles[0] - angles[1]).square()
        with torch.no_grad():
            share = unlike / (1 - overlap + unlike).clamp(min=EPSILON)
        return near - share * unlike
    if kind == "eiou":
        unlike = (object_sides.clamp(min=0) - sides.clamp(min=0)).square() / (outer.square() + EPSILON)
        return (near - unlike.sum(1)) * overlap
    return near


EPSILON = 1e-9


def _siou_penalty(shift: Tensor, sides: Tensor, object_sides: Tensor, outer: Tensor) -> Tensor:
    """Distance, cheaper along an axis (the angle), and shape; the outer box counts no last pixels."""
    # The sine of twice the angle between the shift and an axis.
    angle = 2 * shift.prod(1).abs() / shift.square().sum(1).clamp(min=EPSILON)
    distance = 2 - torch.exp((angle - 2)[:, None] * (shift / outer.clamp(min=EPSILON)).square()).sum(1)
    unlike = (sides - object_sides).abs() / torch.max(sides, object_sides).clamp(min=EPSILON)
    return distance + (1 - torch.exp(-unlike)).pow(4).sum(1)


class ComposedLoss:
    """The sum of several losses of one box; loss_cfg: a list of blocks `{type, kwargs}`.

    As in United-Perception a loss of deltas in the list (l1_loss, smooth_l1_loss) is the mean over the
    elements of the positives' deltas, whatever the head divides by; iou_loss is divided as it is alone.
    """

    def __init__(self, loss_cfg: list[dict[str, Any]], name: str | None = None) -> None:
        where = "cfg.loc_loss.kwargs.loss_cfg"
        if not loss_cfg:
            raise ValueError(f"`{where}` is a list of at least one loss")
        self.losses = [
            build_block(block, f"{where}[{index}]", LOCATION_LOSSES) for index, block in enumerate(loss_cfg)
        ]

    def __call__(self, student: Tensor, target: Tensor, count: Tensor, moved: Moved) -> Tensor:
        """The sum over the losses of deltas [P, 4]."""
        elements = torch.full((), float(student.numel()), device=student.device)
        total = student.new_zeros(())
        for loss in self.losses:
            whole = isinstance(loss, (IouLoss, ComposedLoss))
            total = total + loss(student, target, count if whole else elements, moved)
        return total


CLASS_LOSSES: dict[str, Any] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "sigmoid_focal_loss": SigmoidFocal,
    "torch_sigmoid_focal_loss": SigmoidFocal,
    "quality_focal_loss": QualityFocal,
}
LOCATION_LOSSES: dict[str, Any] = {
    "l1_loss": L1,
    "smooth_l1_loss": SmoothL1,
    "iou_loss": IouLoss,
    "compose_loc_loss": ComposedLoss,
}


def at_least_one(count: Tensor) -> Tensor:
    """A count, or a sum of weights, as every process's share of the total, where the total is at least 1."""
    processes = dist.get_world_size() if distributed() else 1
    return global_count(count).clamp(min=1.0 / processes)


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """[N, C] in the dtype of `like`: 1 at class - 1, nothing for the background and ignored rows."""
    classes = torch.arange(1, like.shape[1] + 1, device=like.device)
    return (target[:, None] == classes).to(like.dtype)


def as_they_are(**arguments: tuple[Any, tuple[Any, ...]]) -> None:
    """Refuse values other than the ones there are."""
    for name, (value, allowed) in arguments.items():
        if value not in allowed:
            raise ValueError(f"`{name}` is {' or '.join(map(str, allowed))}, not `{value}`")
