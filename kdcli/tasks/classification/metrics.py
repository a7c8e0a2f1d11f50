"""Metrics of logits: top-k accuracy, cross entropy, calibration error, agreement of two networks.

All are sums that add up over processes.
"""

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
    calibration error over 15 equal bins, Guo et al. 2017, arXiv:1706.04599). A sample whose logits have no
    softmax (NaN, an infinity) is unanswered: wrong at every k, and no part of the other two.
    """

    unusable = "gives logits that are not finite (NaN or infinite)"

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        self.topk = tuple(topk)
        self._sums: Tensor | None = None
        self._unanswered: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """outputs["logits"] [B, K], batch["labels"] [B], batch["indices"] [B]."""
        logits, labels = outputs["logits"].float(), batch["labels"]
        answered = has_softmax(logits)
        logits = torch.where(answered[:, None], logits, 0.0)
        ranked = logits.topk(min(max(self.topk), logits.shape[1]), dim=1).indices
        hits = ((ranked == labels[:, None]) & answered[:, None]).cumsum(1)
        confidence, answer = logits.softmax(1).max(1)
        right = ((answer == labels) & answered).double()
        bins = (confidence * BINS).long().clamp_(max=BINS - 1)
        counted = answered.double()
        per_bin = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device)
        for row, values in enumerate((counted, confidence.double() * counted, right)):
            per_bin[row].scatter_add_(0, bins, values)
        silent = len(labels) - counted.sum()
        entropy = torch.where(answered, F.cross_entropy(logits, labels, reduction="none").double(), 0.0)
        parts = [
            torch.tensor([float(len(labels))], dtype=torch.float64, device=logits.device),
            torch.stack([hits[:, min(k, hits.shape[1]) - 1].double().sum() for k in self.topk]),
            entropy.sum()[None],
            per_bin.flatten(),
            silent[None],
        ]
        sums = torch.cat(parts)
        self._sums = sums if self._sums is None else self._sums + sums
        if "indices" in batch:
            self._unanswered.append((batch["indices"], ~answered))

    def sums(self) -> Tensor:
        """One float64 vector: count, hits per k, cross entropy, three rows of bins, unanswered."""
        if self._sums is None:
            return torch.zeros(3 + len(self.topk) + 3 * BINS, dtype=torch.float64)
        return self._sums

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics; NaN-free even for no samples."""
        values = sums.cpu()
        count = max(float(values[0]), 1.0)
        answered = max(float(values[0] - values[-1]), 1.0)
        after = 1 + len(self.topk)
        per_bin = values[after + 1 : -1].reshape(3, BINS)
        gap = (per_bin[1] - per_bin[2]).abs().sum() / answered
        return {
            **{f"top{k}": 100.0 * float(values[1 + i]) / count for i, k in enumerate(self.topk)},
            "cross_entropy": float(values[after]) / answered,
            "calibration_error": 100.0 * float(gap),
        }

    def unanswered(self, sums: Tensor) -> int:
        """How many samples got no usable logits."""
        return int(sums[-1])

    def unanswered_samples(self) -> list[int]:
        """Which of these this process has seen, by their place in the data, each once, in order."""
        return sorted({index for indices, which in self._unanswered for index in indices[which].tolist()})


def has_softmax(logits: Tensor) -> Tensor:
    """bool [B]: whether the row [K] has a softmax: no NaN, no +inf, and not -inf throughout."""
    return logits.logsumexp(1).isfinite()


class LogitsAgreement:
    """How often student and teacher predict the same class, and the mean KL of their probabilities."""

    def sums(self, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Tensor | None:
        """`agreement_sums` of two networks' outputs; None where one has no logits, or others."""
        own, other = student.get("logits"), teacher.get("logits")
        if own is None or other is None or own.shape != other.shape:
            return None
        return agreement_sums(own, other)

    def result(self, sums: Tensor) -> dict[str, float] | None:
        """same_top1 in percent, mean_kl in nats."""
        count, equal, divergence = sums.tolist()
        return {"same_top1": 100.0 * equal / count, "mean_kl": divergence / count} if count else None


def agreement_sums(student: Tensor, teacher: Tensor) -> Tensor:
    """[count, equal answers, summed KL(teacher ‖ student)] of logits [B, K], float64.

    Rows of which one side is unanswered are not counted.
    """
    both = has_softmax(student.float()) & has_softmax(teacher.float())
    student, teacher = (torch.where(both[:, None], x, 0.0) for x in (student, teacher))
    equal = ((student.argmax(1) == teacher.argmax(1)) & both).double().sum()
    divergence = F.kl_div(
        student.float().log_softmax(1), teacher.float().log_softmax(1), reduction="sum", log_target=True
    )
    return torch.stack([both.double().sum(), equal, divergence.double()])
