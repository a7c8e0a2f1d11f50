"""Contrastive representation distillation: a sample's two embeddings against many others'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.draws import drawn_integers, new_salt
from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import gather_rows, global_mean
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count, Share, Temperature

EPS = 1e-7


class ContrastiveRepresentation(StatefulLoss):
    """Noise contrastive estimate of a sample's own pair among K others, both ways (CRD), ÷ B.

    The student's embedding is scored against a memory of all samples' teacher embeddings and the teacher's
    against a memory of the student's: exp(cosine / T) / Z, with Z set by the first batch. Embeddings are
    trained linear maps of the flattened feature to feat_dim, divided by their norm. The K others are
    drawn from the samples of other classes, as the authors draw them, or with `negatives: all` from all
    samples; with replacement, for each sample and step anew and on any number of processes alike. In
    training a memory row moves to momentum·row + (1 − momentum)·embedding, renormalised; the rows of all
    processes go into every process's memory, so that these stay equal. The memories are buffers of
    num_samples × feat_dim and belong in the checkpoint.
    Taps: the pooled vector.
    Source: "Contrastive Representation Distillation", arXiv:1910.10699.
    """

    memory_v1: Tensor
    memory_v2: Tensor
    z: Tensor
    salt: Tensor
    labels: Tensor
    ordered: Tensor
    class_starts: Tensor
    class_sizes: Tensor

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        num_samples: int,
        sample_labels: NDArray[np.int64] | None,
        *,
        feat_dim: Count = 128,
        K: Count = 16384,
        T: Temperature = 0.07,
        momentum: Share = 0.5,
        negatives: Literal["other", "all"] = "other",
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.K, self.T, self.momentum = K, T, momentum
        self.embed_s = nn.Linear(math.prod(student_shape[1:]), feat_dim)
        self.embed_t = nn.Linear(math.prod(teacher_shape[1:]), feat_dim)
        bound = 1 / math.sqrt(feat_dim / 3)
        self.register_buffer("memory_v1", torch.empty(num_samples, feat_dim).uniform_(-bound, bound))
        self.register_buffer("memory_v2", torch.empty(num_samples, feat_dim).uniform_(-bound, bound))
        self.register_buffer("z", torch.full((2,), -1.0))
        self.register_buffer("salt", new_salt())
        self.other_classes = negatives == "other"
        if self.other_classes:
            # Functions of the data: not in the checkpoint.
            for name, values in _by_class(sample_labels).items():
                self.register_buffer(name, torch.from_numpy(values), persistent=False)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor, step: int = 0) -> Tensor:
        """A scalar. indices [B] int64: the samples' positions in the dataset."""
        return self.contrast(student, teacher, indices, self.draw(indices, step))

    def draw(self, indices: Tensor, step: int) -> Tensor:
        """Rows of the memories for each sample, [B, K + 1]: its own first, then K drawn ones."""
        if not self.other_classes:
            others = drawn_integers(self.salt, step, indices, self.K, below=self.num_samples)
            return torch.cat([indices[:, None], others], dim=1)
        own = self.labels[indices][:, None]
        start, size = self.class_starts[own], self.class_sizes[own]
        number = drawn_integers(self.salt, step, indices, self.K, below=self.num_samples - size)
        # In the order of classes: those before the own one, then those behind it.
        others = self.ordered[torch.where(number < start, number, number + size)]
        return torch.cat([indices[:, None], others], dim=1)

    def contrast(self, student: Tensor, teacher: Tensor, indices: Tensor, drawn: Tensor) -> Tensor:
        """The loss, unweighted, for given rows; moves the memories on in training."""
        v1, v2 = normalized(self.embed_s(student.flatten(1)), self.embed_t(teacher.flatten(1)))
        scores = [
            (memory[drawn].to(v.dtype) @ v[:, :, None]).squeeze(2) / self.T
            for memory, v in ((self.memory_v2, v1), (self.memory_v1, v2))
        ]
        z = self._normalisers(scores)
        loss = self._estimate(scores[0] - z[0].log()) + self._estimate(scores[1] - z[1].log())
        if self.training:
            self._move(indices, v1.detach(), v2.detach())
        return loss

    def _normalisers(self, scores: list[Tensor]) -> Tensor:
        # torch.where instead of a branch: what is in the buffer is known only on the device.
        first = torch.stack([score.detach().exp().mean() for score in scores]) * self.num_samples
        z = torch.where(self.z < 0, global_mean(first), self.z.to(first.dtype))
        if self.training:
            self.z.copy_(z)
        return z

    def _estimate(self, log_p: Tensor) -> Tensor:
        noise = self.K / self.num_samples
        log_total = (log_p.exp() + noise + EPS).log()
        positive = log_p[:, 0] - log_total[:, 0]
        negative = math.log(noise) - log_total[:, 1:]
        return -(positive.sum() + negative.sum()) / len(log_p)

    @torch.no_grad()
    def _move(self, indices: Tensor, v1: Tensor, v2: Tensor) -> None:
        indices, v1, v2 = (gather_rows(x) for x in (indices, v1, v2))
        # A sample that comes twice (a padded last batch) writes its last row each time: the order in
        # which a device writes is not fixed.
        same = indices[:, None] == indices[None, :]
        last = (same * torch.arange(len(indices), device=indices.device)).amax(1)
        for memory, v in ((self.memory_v1, v1), (self.memory_v2, v2)):
            row = memory[indices].to(v.dtype) * self.momentum + v[last] * (1 - self.momentum)
            memory.index_copy_(0, indices, F.normalize(row).to(memory.dtype))


def _by_class(labels: NDArray[np.int64] | None) -> dict[str, NDArray[np.int64]]:
    """The labels [N], the samples in the order of their classes [N], and where each class starts in it, and its size.

    Raises RunError KD708 where a sample has none of another class, or labels are not known.
    """
    why = "this data does not say the label of each before training" if labels is None else None
    if labels is not None:
        sizes = np.bincount(labels).astype(np.int64)
        if sizes.max() < len(labels):
            starts = np.cumsum(sizes) - sizes
            ordered = np.argsort(labels, kind="stable").astype(np.int64)
            return {"labels": labels, "ordered": ordered, "class_starts": starts, "class_sizes": sizes}
        why = "all samples of this data are of one class"
    raise RunError.of(
        "KD708",
        f"`crd` contrasts each sample with samples of other classes, and {why}",
        "say `negatives: all` in its kwargs: it then draws them from all samples",
    )
