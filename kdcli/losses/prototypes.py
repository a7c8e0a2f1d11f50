"""A queue of the teacher's features of past images as prototypes: what an image resembles, and how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.draws import drawn_integers, new_salt
from kdcli.losses.parts.inputs import as_map, equal_shapes, full_precision, map_shape, places_in
from kdcli.losses.parts.logits import EXCLUDED, kl_rows
from kdcli.losses.parts.reduce import gather_rows, row_mean
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count, Temperature, Weight, Width


class Prototypes(StatefulLoss):
    """KL(teacher ‖ student) of softmax(cosine to each prototype / T), over a queue of the teacher's own features.

    The prototypes are the teacher's features of the last images, those of the batch among them: a classifier
    without labels. global_weight: of the features averaged over positions, against a queue of such; a mean over
    the batch. local_weight: of each position's, against a queue of `positions` drawn ones an image; a mean over
    positions and the batch. A feature with one position has the global part alone. There is no factor T².
    Each queue holds the last queue_size rows, first in, first out, in training alone; the rows of all processes go
    into every process's queue in the order of their sample indices, so that these stay equal. The queues are
    buffers of queue_size × the teacher's channels and belong in the checkpoint.
    The student is compared in the teacher's shape: the adapter is `mlp` where the spec names none. The documentation
    gives the form (queue, soft labels, KL); queue_size, T and positions are ours.
    Taps: the last map or the patches, or (global part alone) the pooled vector.
    Source: "Knowledge Distillation: A Good Teacher is Patient and Consistent", arXiv:2106.05237, in the form of the
    distillation methods of LightlyTrain's documentation.
    """

    salt: Tensor

    def __init__(
        self,
        teacher_shape: Sequence[int],
        *,
        queue_size: Width = 2048,
        T: Temperature = 0.07,
        global_weight: Weight = 1.0,
        local_weight: Weight = 1.0,
        positions: Count = 8,
    ) -> None:
        super().__init__()
        self.T, self.positions = T, positions
        self.global_weight, self.local_weight = global_weight, local_weight
        channels = map_shape(teacher_shape, "prototypes")[1]
        self.images = Queue(queue_size, channels)
        self.places = Queue(queue_size, channels) if places_in(teacher_shape) > 1 else None
        self.register_buffer("salt", new_salt())

    @full_precision
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        indices: Tensor,
        teacher_weights: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """A scalar. indices [B] int64: the samples' positions in the dataset. teacher_weights [B]: of each sample."""
        equal_shapes(student, teacher, "prototypes")
        student, teacher = (as_map(x, "prototypes").flatten(2).transpose(1, 2) for x in (student, teacher))
        order = gather_rows(indices).argsort(stable=True) if self.training else None
        s, t = normalized(student.mean(1), teacher.mean(1))
        rows = self.global_weight * self._divergence(self.images, s, t, t, order)
        if self.places is not None:
            s, t = normalized(student, teacher, 2)
            drawn = drawn_integers(self.salt, step, indices, self.positions, below=t.shape[1])
            entering = t.gather(1, drawn[:, :, None].expand(-1, -1, t.shape[2]))
            local = self._divergence(self.places, s.flatten(0, 1), t.flatten(0, 1), entering, order)
            rows = rows + self.local_weight * local.reshape(len(indices), -1).mean(1)
        return row_mean(rows, teacher_weights)

    def _divergence(
        self, queue: Queue, student: Tensor, teacher: Tensor, entering: Tensor, order: Tensor | None
    ) -> Tensor:
        """KL of each row; in training the teacher's rows [B, ..., D] `entering` go into the queue first."""
        if order is not None:
            queue.push(gather_rows(entering)[order].reshape(-1, entering.shape[-1]))
        log_s, log_t = (queue.log_softmax(x, self.T) for x in (student, teacher))
        return kl_rows(log_s, log_t)


class Queue(nn.Module):
    """The last `size` of the rows [n, channels] that were pushed, as a ring in a buffer."""

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, channels))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put rows in the place of the oldest; of more than the ring holds the last ones."""
        rows = rows[-len(self.rows) :]
        # Where the ring stands is known only on the device: no branch, no slice.
        places = (self.pushed + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows.index_copy_(0, places, rows.to(self.rows.dtype))
        self.pushed += len(rows)

    def log_softmax(self, vectors: Tensor, T: float) -> Tensor:
        """Log-probabilities [n, size] of softmax(vectors · row / T); places not filled yet have about -1e9."""
        empty = torch.arange(len(self.rows), device=vectors.device) >= self.pushed
        # A copy: the next batch changes the ring, and a gradient may be asked for after that.
        scores = vectors @ self.rows.to(vectors.dtype, copy=True).T / T
        return scores.masked_fill(empty, EXCLUDED).log_softmax(1)
