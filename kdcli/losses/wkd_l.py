"""Wasserstein distillation of logits: probability moved among classes that are alike."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import distributed
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count, NonNegative, Positive, Temperature, Weight


class WassersteinLogit(StatefulLoss):
    """Target term plus gamma·transport between the non-target distributions (WKD-L), averaged over rows.

    The target term is −t_y·log s_y at T 1. The transport runs from the student's to the teacher's softmax_T
    over the classes other than y, by `iterations` Sinkhorn steps of strength sinkhorn_lambda. Moving
    between classes i and j costs 1 − exp(−sharpen·(1 − CKA)), with the linear CKA between the teacher's
    logits on the samples of i and those of j, paired in the order in which they come; `prepare` sees the
    training data not augmented and collects at most max_per_class of each class on each process, `prepared`
    computes the costs once, for all processes. Before that all classes are equally far. The costs are a
    buffer. No T² factor. The defaults are the authors' for ImageNet (ResNet-34 to ResNet-18); for CIFAR-100
    they use T 8 and gamma 600 between ResNets, T 6 and gamma 200 from a Wide ResNet to ShuffleNet.
    Taps: the logits.
    Source: "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
    arXiv:2412.08139.
    """

    cost: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        T: Temperature = 2.0,
        gamma: Weight = 30.0,
        sharpen: NonNegative = 1.0,
        sinkhorn_lambda: Positive = 0.05,
        iterations: Count = 10,
        max_per_class: Count = 1000,
    ) -> None:
        super().__init__()
        self.T, self.gamma, self.sharpen = T, gamma, sharpen
        self.sinkhorn_lambda, self.iterations = sinkhorn_lambda, iterations
        self.max_per_class = max_per_class
        self.num_classes = num_classes
        self.register_buffer("cost", cost_of(1 - torch.eye(num_classes), sharpen))
        self._seen: list[list[Tensor]] = [[] for _ in range(num_classes)]

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """A scalar; logits [B, K], labels [B]."""
        own = labels[:, None]
        target = -(teacher.softmax(1).gather(1, own) * student.log_softmax(1).gather(1, own)).mean()
        is_target = torch.zeros_like(student, dtype=torch.bool).scatter(1, own, True)
        s, t = ((x / self.T).masked_fill(is_target, -torch.inf).softmax(1) for x in (student, teacher))
        return target + self.gamma * self._transport(s, t, is_target).mean()

    def _transport(self, student: Tensor, teacher: Tensor, is_target: Tensor) -> Tensor:
        # One kernel [K, K] for all rows: the target class has no mass on either side, which leaves it out
        # of every sum just as a kernel of its own without that class would.
        cost = self.cost.to(student.dtype).relu() + 1e-8
        kernel = torch.exp(-cost / self.sinkhorn_lambda)
        u = (~is_target).to(student.dtype) / (student.shape[1] - 1)
        v = u
        for _ in range(self.iterations):
            v = teacher / (u @ kernel + 1e-8)
            u = student / (v @ kernel.T + 1e-8)
        return (u * (v @ (kernel * cost).T)).sum(1)

    @torch.no_grad()
    def prepare(self, teacher: Tensor, labels: Tensor) -> None:
        """Keep the teacher's logits [B, K] on one training batch, by class."""
        for row, label in zip(teacher.detach().to(self.cost.dtype).cpu(), labels.tolist(), strict=True):
            if len(self._seen[label]) < self.max_per_class:
                self._seen[label].append(row)

    @torch.no_grad()
    def prepared(self) -> None:
        """Compute the costs from what `prepare` kept, of all processes.

        As many samples of each class are used as the rarest has, of those with two or more; the other
        classes stay equally far from all.
        """
        counts = torch.tensor([len(rows) for rows in self._seen], device=self.cost.device)
        world = 1
        if distributed():
            world = dist.get_world_size()
            dist.all_reduce(counts, op=dist.ReduceOp.MIN)
        held = counts.tolist()
        usable = [count for count in held if count * world >= 2]
        if not usable:
            return
        most = min(usable)
        features = torch.zeros(self.num_classes, most, self.num_classes, dtype=self.cost.dtype)
        for label, rows in enumerate(self._seen):
            if held[label] >= most:
                features[label] = torch.stack(rows[:most])
        features = features.to(self.cost.device)
        if distributed():
            parts = [torch.empty_like(features) for _ in range(world)]
            dist.all_gather(parts, features)
            features = torch.cat(parts, dim=1)
        self.cost.copy_(cost_of(1 - class_similarity(features), self.sharpen))
        self._seen = [[] for _ in range(self.num_classes)]


def cost_of(distance: Tensor, sharpen: float) -> Tensor:
    """What moving a unit over a distance in [0, 1] costs: 1 − exp(−sharpen·distance); 0: the distance."""
    return 1 - torch.exp(-sharpen * distance) if sharpen != 0 else distance


def class_similarity(features: Tensor) -> Tensor:
    """Linear CKA [K, K] between the features [K, n, D] of classes, sample by sample."""
    centred = features - features.mean(1, keepdim=True)
    count, width = centred.shape[1:]
    if count <= width:
        # ‖YᵀX‖² is the inner product of the two n×n Gram matrices: cheaper than K² products of D×D.
        grams = (centred @ centred.transpose(1, 2)).flatten(1)
        joint = grams @ grams.T
    else:
        joint = torch.stack([(centred.transpose(1, 2) @ one).pow(2).sum((1, 2)) for one in centred])
    norms = joint.diagonal().clamp(min=torch.finfo(joint.dtype).tiny).sqrt()
    return (joint / (norms[:, None] * norms[None, :])).fill_diagonal_(1.0)
