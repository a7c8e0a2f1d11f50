"""Top-k accuracy, cross entropy and calibration error of logits, counted so that processes add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15


class ClassificationMeter:
    """Sums over samples: hits at each k, cross entropy, and per confidence bin count, confidence, hits.

    Metrics: `top{k}` in percent, `cross_entropy` in nats, `calibration_error` in percent (expected
    calibration error over 15 equal bins, Guo et al. 2017, arXiv:1706.04599).
    """

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        self.topk = tuple(topk)
        self._sums: Tensor | None = None

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """outputs["logits"] [B, K], batch["labels"] [B]."""
        logits, labels = outputs["logits"].float(), batch["labels"]
        ranked = logits.topk(min(max(self.topk), logits.shape[1]), dim=1).indices
        hits = (ranked == labels[:, None]).cumsum(1)
        confidence, answer = logits.softmax(1).max(1)
        right = (answer == labels).double()
        bins = (confidence * BINS).long().clamp_(max=BINS - 1)
        per_bin = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device)
        for row, values in enumerate((torch.ones_like(right), confidence.double(), right)):
            per_bin[row].scatter_add_(0, bins, values)
        parts = [
            torch.tensor([float(len(labels))], dtype=torch.float64, device=logits.device),
            torch.stack([hits[:, min(k, hits.shape[1]) - 1].double().sum() for k in self.topk]),
            F.cross_entropy(logits, labels, reduction="sum").double()[None],
            per_bin.flatten(),
        ]
        counted = torch.cat(parts)
        self._sums = counted if self._sums is None else self._sums + counted

    def sums(self) -> Tensor:
        """One float64 vector: count, hits per k, cross entropy, three rows of bins."""
        if self._sums is None:
            return torch.zeros(2 + len(self.topk) + 3 * BINS, dtype=torch.float64)
        return self._sums

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics; NaN-free even for no samples."""
        values = sums.cpu()
        count = max(float(values[0]), 1.0)
        after = 1 + len(self.topk)
        per_bin = values[after + 1 :].reshape(3, BINS)
        gap = (per_bin[1] - per_bin[2]).abs().sum() / count
        return {
            **{f"top{k}": 100.0 * float(values[1 + i]) / count for i, k in enumerate(self.topk)},
            "cross_entropy": float(values[after]) / count,
            "calibration_error": 100.0 * float(gap),
        }


def agreement_sums(student: Tensor, teacher: Tensor) -> Tensor:
    """[count, equal answers, summed KL(teacher ‖ student)] of logits [B, K], float64."""
    equal = (student.argmax(1) == teacher.argmax(1)).double().sum()
    divergence = F.kl_div(
        student.float().log_softmax(1), teacher.float().log_softmax(1), reduction="sum", log_target=True
    )
    count = torch.tensor(float(len(student)), dtype=torch.float64, device=student.device)
    return torch.stack([count, equal, divergence.double()])
