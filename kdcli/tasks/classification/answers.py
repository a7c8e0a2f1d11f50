"""What several classifiers answer on the same images: right by class, how sure, where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcli.tasks.classification.metrics import has_softmax
from kdcli.tasks.pictures import image_uri

BINS = 15
WORST = 12
MOST_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class _Dispute:
    """One image with the probabilities of each network on it."""

    score: float
    image: Tensor
    label: int
    probabilities: Mapping[str, Tensor]


class Answers:
    """Counts answers batch by batch; names: of the networks, the student's first."""

    def __init__(self, names: Sequence[str], num_classes: int) -> None:
        self.names = tuple(names)
        self.num_classes = num_classes
        self.support = torch.zeros(num_classes, dtype=torch.int64)
        self.hits = {name: torch.zeros(num_classes, dtype=torch.int64) for name in names}
        self.bins = {name: torch.zeros(3, BINS, dtype=torch.float64) for name in names}
        self._disputes: list[_Dispute] = []

    def update(self, logits: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> None:
        """logits: [B, K] of each network; images [B, C, H, W]; labels [B].

        A row without a softmax (NaN, an infinity) is wrong, and shown as no answer at all: every class alike.
        """
        labels = labels.cpu()
        self.support += torch.bincount(labels, minlength=self.num_classes)
        answered = {name: has_softmax(logits[name].float()).cpu() for name in self.names}
        probabilities = {
            name: torch.where(
                answered[name][:, None], logits[name].float().softmax(1).cpu(), 1 / self.num_classes
            )
            for name in self.names
        }
        for name, shares in probabilities.items():
            confidence, answer = shares.max(1)
            right = (answer == labels) & answered[name]
            self.hits[name] += torch.bincount(labels[right], minlength=self.num_classes)
            at = (confidence * BINS).long().clamp_(max=BINS - 1)
            for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
                self.bins[name][row].scatter_add_(0, at, values.double())
        self._note_disputes(probabilities, images, labels)

    def _note_disputes(self, probabilities: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> None:
        student, *teachers = self.names
        if not teachers:
            return
        score = torch.zeros(len(labels))
        for name in teachers:
            ours, theirs = probabilities[student], probabilities[name]
            # Total variation, 0..1; other answers come before mere doubt.
            score += 0.5 * (ours - theirs).abs().sum(1) + (ours.argmax(1) != theirs.argmax(1)).float()
        for index in score.topk(min(WORST, len(score))).indices.tolist():
            entry = _Dispute(
                float(score[index]),
                images[index].detach().cpu().clone(),
                int(labels[index]),
                {name: shares[index].clone() for name, shares in probabilities.items()},
            )
            self._disputes.append(entry)
        self._disputes = sorted(self._disputes, key=lambda dispute: -dispute.score)[:WORST]

    def class_accuracy(self, classes: Sequence[str]) -> dict[str, Any]:
        """The section of report_data.json."""
        support = self.support.tolist()
        return {
            "classes": list(classes),
            "support": support,
            "networks": {
                name: [hit / n if n else None for hit, n in zip(hits.tolist(), support, strict=True)]
                for name, hits in self.hits.items()
            },
        }

    def reliability(self) -> dict[str, list[dict[str, float]]]:
        """The section of report_data.json: each bin that holds samples."""
        return {
            name: [
                {"confidence": sure / count, "accuracy": right / count, "count": int(count)}
                for count, sure, right in bins.T.tolist()
                if count
            ]
            for name, bins in self.bins.items()
        }

    def disagreements(
        self, classes: Sequence[str], mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> list[dict[str, Any]]:
        """The section of report_data.json."""
        return [
            {
                "image": image_uri(dispute.image, mean, std),
                "label": classes[dispute.label],
                "answers": {
                    name: {"answer": classes[int(shares.argmax())], "confidence": float(shares.max())}
                    for name, shares in dispute.probabilities.items()
                },
            }
            for dispute in self._disputes
        ]
