"""What a report shows of classifiers: accuracy by class, how sure they are, where they disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.tasks.classification.metrics import ClassificationMeter, LogitsAgreement, has_softmax
from kdcli.tasks.pictures import image_uri
from kdcli.tasks.task import Answered, Forward


class PredictionsReport:
    """Figures and sections from the logits of the first images."""

    layers = True

    def __init__(self, meter: Callable[[], ClassificationMeter]) -> None:
        self.meter = meter

    def answered(
        self, networks: Mapping[str, Forward], batches: Iterator[Mapping[str, Any]], facts: DataFacts
    ) -> Answered | None:
        """One pass; None where there are several heads, and so no one answer to show."""
        student = next(iter(networks))
        meters = {name: self.meter() for name in networks}
        agreement, sums = LogitsAgreement(), dict[str, Tensor]()
        predictions: Predictions | None = None
        seen = 0
        for batch in batches:
            shown: dict[str, Tensor] = {}
            for name, forward in networks.items():
                outputs = forward(batch)
                if "logits" in outputs:  # a teacher whose list ends early has none
                    shown[name] = outputs["logits"]
            seen += len(batch["labels"])
            if batch["labels"].dim() != 1 or not isinstance(shown.get(student), Tensor):
                return None
            for name, logits in shown.items():
                meters[name].update({"logits": logits}, batch)
            alike = {name: logits for name, logits in shown.items() if logits.shape == shown[student].shape}
            for name, logits in alike.items():
                found = agreement.sums({"logits": shown[student]}, {"logits": logits})
                if name != student and found is not None:
                    sums[name] = sums[name] + found.cpu() if name in sums else found.cpu()
            if predictions is None:
                predictions = Predictions(list(alike), shown[student].shape[1])
            predictions.update(alike, batch["image"], batch["labels"])
        assert predictions is not None, "a test side has at least one batch"
        agreed = {name: agreement.result(found) for name, found in sums.items()}
        return Answered(
            sections=_sections(predictions, facts),
            metrics={name: meters[name].result(meters[name].sums()) for name in shown},
            agreement={name: figures for name, figures in agreed.items() if figures is not None},
            whole=seen >= (facts.num_samples or 0),
        )


def _sections(predictions: Predictions, facts: DataFacts) -> dict[str, Any]:
    """Of report_data.json."""
    named = facts.class_names if len(facts.class_names or ()) == predictions.num_classes else None
    classes = named or tuple(str(index) for index in range(predictions.num_classes))
    sections = {
        "reliability": predictions.reliability(),
        "disagreements": predictions.disagreements(classes, facts.mean, facts.std),
    }
    if predictions.num_classes <= MOST_CLASSES:
        sections["class_accuracy"] = predictions.class_accuracy(classes)
    return sections


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


class Predictions:
    """Counts predictions batch by batch; names: of the networks, the student's first."""

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
            own, other = probabilities[student], probabilities[name]
            # Total variation, 0..1; other predictions come before mere doubt.
            score += 0.5 * (own - other).abs().sum(1) + (own.argmax(1) != other.argmax(1)).float()
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
