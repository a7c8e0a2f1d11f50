"""A classifier's predictions measured: metrics, agreement of two networks, and what a report shows of them.

All figures come from sums that add up over processes; a report's are of one pass in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.tasks.pictures import SIDE, image_uri, reduced
from kdcli.tasks.task import ENOUGH_OTHERS, Answered, Forward

BINS = 15
"""Equal spans of confidence."""

WORST = 12
"""How many images a report shows that networks disagree on."""

MOST_CLASSES = 1000
"""Up to so many classes a report shows the accuracy of each."""

MATRIX_CLASSES = 30
"""Up to so many classes a report shows the whole confusion matrix; of more, the answers mistaken most often."""

MISTAKEN_PAIRS = 12
"""How many pairs of classes that are mistaken for each other a report names."""

WORST_CLASSES, WORST_PICTURES, PICTURE_SIDE = 6, 3, 96
"""How many of the classes that the student answers worst, and of each how many images it got wrong, a report shows;
the images' longest side in pixels."""

SILENT = -3
"""Where among the sums the number of unanswered samples stands."""


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
            torch.stack([(answer * answered).double().pow(power).sum() for power in (1, 2)]),
        ]
        sums = torch.cat(parts)
        self._sums = sums if self._sums is None else self._sums + sums
        if "indices" in batch:
            self._unanswered.append((batch["indices"], ~answered))

    def sums(self) -> Tensor:
        """One float64 vector: count, hits per k, cross entropy, three rows of bins, unanswered, answers, squares."""
        if self._sums is None:
            return torch.zeros(5 + len(self.topk) + 3 * BINS, dtype=torch.float64)
        return self._sums

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics; NaN-free even for no samples."""
        values = sums.cpu()
        count = max(float(values[0]), 1.0)
        answered = max(float(values[0] - values[SILENT]), 1.0)
        after = 1 + len(self.topk)
        per_bin = values[after + 1 : SILENT].reshape(3, BINS)
        gap = (per_bin[1] - per_bin[2]).abs().sum() / answered
        return {
            **{f"top{k}": 100.0 * float(values[1 + i]) / count for i, k in enumerate(self.topk)},
            "cross_entropy": float(values[after]) / answered,
            "calibration_error": 100.0 * float(gap),
        }

    def unanswered(self, sums: Tensor) -> int:
        """How many samples got no usable logits."""
        return int(sums[SILENT])

    def one_answer(self, sums: Tensor) -> int | None:
        """The class that all samples got though some are of others (kdcli.tasks.task.one_answer); exact below 2**53."""
        values = sums.cpu()
        answered, total, squares = float(values[0] - values[SILENT]), float(values[-2]), float(values[-1])
        wrong = answered - float(values[SILENT - BINS : SILENT].sum())
        if wrong < ENOUGH_OTHERS or answered * squares != total * total:
            return None
        return round(total / answered)

    def unanswered_samples(self) -> list[int]:
        """Which of these this process has seen, by their place in the data, each once, in order."""
        return sorted({index for indices, which in self._unanswered for index in indices[which].tolist()})


class HeadsMeter:
    """A meter for each of several heads: their metrics as `head0_top1` ..., and the means over heads as `top1` ..."""

    unusable = ClassificationMeter.unusable

    def __init__(self, heads: int, topk: Sequence[int] = (1, 5)) -> None:
        self.meters = [ClassificationMeter(topk) for _ in range(heads)]

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """outputs["logits"], [B, K] for each head, batch["labels"] [B, heads], batch["indices"] [B]."""
        columns = batch["labels"].unbind(1)
        for meter, logits, labels in zip(self.meters, outputs["logits"], columns, strict=True):
            meter.update({"logits": logits}, {**batch, "labels": labels})

    def sums(self) -> Tensor:
        """The sums of all heads, one behind the other."""
        return torch.cat([meter.sums() for meter in self.meters])

    def _parts(self, sums: Tensor) -> Sequence[Tensor]:
        return sums.chunk(len(self.meters))

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics; NaN-free even for no samples."""
        each = [meter.result(part) for meter, part in zip(self.meters, self._parts(sums), strict=True)]
        means = {name: sum(found[name] for found in each) / len(each) for name in each[0]}
        own = {f"head{n}_{name}": value for n, found in enumerate(each) for name, value in found.items()}
        return {**means, **own}

    def unanswered(self, sums: Tensor) -> int:
        """How many samples the head with most of them gave no usable logits."""
        parts = zip(self.meters, self._parts(sums), strict=True)
        return max(meter.unanswered(part) for meter, part in parts)

    def unanswered_samples(self) -> list[int]:
        """Which of these this process has seen, of any head."""
        return sorted({sample for meter in self.meters for sample in meter.unanswered_samples()})


class ShotAccuracy:
    """Accuracy by how often a class is in the training data: `many_shot_acc_top1`, `median_...`, `low_...`.

    In percent, the mean over the classes of a group of each class's own top-k accuracy; a class without test samples
    is left out, as is a group without such a class. counts: training images of each class; many: more than
    many_shot_thr of them, low: fewer than low_shot_thr, median: all others.
    """

    def __init__(
        self, *, counts: Sequence[int], topk: Sequence[int], many_shot_thr: float, low_shot_thr: float
    ) -> None:
        self.counts, self.topk = torch.tensor(counts), tuple(topk)
        self.groups = {
            "many": self.counts > many_shot_thr,
            "median": (self.counts >= low_shot_thr) & (self.counts <= many_shot_thr),
            "low": self.counts < low_shot_thr,
        }
        self._sums = torch.zeros(1 + len(self.topk), len(counts), dtype=torch.float64)

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """outputs["logits"] [B, K], batch["labels"] [B]."""
        logits, labels = outputs["logits"].float().cpu(), batch["labels"].cpu()
        answered = has_softmax(logits)
        ranked = (
            torch.where(answered[:, None], logits, 0.0).topk(min(max(self.topk), logits.shape[1])).indices
        )
        hits = ((ranked == labels[:, None]) & answered[:, None]).cumsum(1)
        rows = [torch.ones(len(labels)), *(hits[:, min(k, hits.shape[1]) - 1] for k in self.topk)]
        for row, values in zip(self._sums, rows, strict=True):
            row.scatter_add_(0, labels, values.double())

    def sums(self) -> Tensor:
        """Samples, and hits at each k, of each class."""
        return self._sums.flatten()

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics of the groups that have samples."""
        samples, *hits = sums.reshape(self._sums.shape)
        metrics = {}
        for name, group in self.groups.items():
            seen = group & (samples > 0)
            for k, right in zip(self.topk, hits, strict=True):
                if seen.any():
                    metrics[f"{name}_shot_acc_top{k}"] = 100.0 * float((right[seen] / samples[seen]).mean())
        return metrics


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


class PredictionsReport:
    """Figures and sections from the logits of the first images."""

    layers = True

    def __init__(self, meter: Callable[[], Any]) -> None:
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
    """The sections of report_data.json: reliability, disagreements, accuracy by class."""
    named = facts.class_names if len(facts.class_names or ()) == predictions.num_classes else None
    classes = named or tuple(str(index) for index in range(predictions.num_classes))
    sections = {
        "measured": {"images": int(predictions.support.sum()), "of": facts.num_samples},
        "reliability": predictions.reliability(),
        "disagreements": predictions.disagreements(classes, facts.mean, facts.std),
    }
    if predictions.num_classes <= MOST_CLASSES:
        sections["class_accuracy"] = predictions.class_accuracy(classes)
        sections["confusion"] = predictions.confusion(classes)
        sections["worst_classes"] = predictions.worst_classes(classes, facts.mean, facts.std)
    return sections


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
        # [label, answer]; of more classes nobody would look at it, and it would be large.
        size = num_classes if num_classes <= MOST_CLASSES else 0
        self.answers = {name: torch.zeros(size, size, dtype=torch.int64) for name in names}
        self._disputes: list[_Dispute] = []
        self._mistakes: dict[int, list[_Dispute]] = {}

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
            size = len(self.answers[name])
            if size:
                pairs = (labels * size + answer)[answered[name]]
                self.answers[name] += torch.bincount(pairs, minlength=size * size).reshape(size, size)
            at = (confidence * BINS).long().clamp_(max=BINS - 1)
            for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
                self.bins[name][row].scatter_add_(0, at, values.double())
        self._note_disputes(probabilities, images, labels)
        self._note_mistakes(probabilities, answered[self.names[0]], images, labels)

    def _note_mistakes(
        self, probabilities: Mapping[str, Tensor], answered: Tensor, images: Tensor, labels: Tensor
    ) -> None:
        """Keep, small, the images of each class that the student is surest of and wrong about."""
        confidence, answer = probabilities[self.names[0]].max(1)
        for index in torch.nonzero((answer != labels) | ~answered).flatten().tolist():
            known = self._mistakes.setdefault(int(labels[index]), [])
            score = float(confidence[index])
            if len(known) == WORST_PICTURES and score <= known[-1].score:
                continue
            small = reduced(images[index].detach().float().cpu(), PICTURE_SIDE).half()
            shares = {name: shares[index].clone() for name, shares in probabilities.items()}
            known.append(_Dispute(score, small, int(labels[index]), shares))
            known.sort(key=lambda dispute: -dispute.score)
            del known[WORST_PICTURES:]

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
        """The section `class_accuracy` of report_data.json."""
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
        """The section `reliability` of report_data.json: each bin that holds samples."""
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
        """The section `disagreements` of report_data.json."""
        return [_shown(dispute, classes, mean, std) for dispute in self._disputes]

    def confusion(self, classes: Sequence[str]) -> dict[str, Any]:
        """The section `confusion` of report_data.json."""
        whole = self.num_classes <= MATRIX_CLASSES
        return {
            "classes": list(classes) if whole else [],
            "networks": {name: counts.tolist() for name, counts in self.answers.items()} if whole else {},
            "mistaken": {name: self._mistaken(counts, classes) for name, counts in self.answers.items()},
        }

    def _mistaken(self, counts: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The wrong answers that are given most often."""
        wrong = counts.clone().fill_diagonal_(0).flatten()
        order = wrong.argsort(descending=True, stable=True)[:MISTAKEN_PAIRS].tolist()
        rows = [(*divmod(place, len(counts)), int(wrong[place])) for place in order if wrong[place]]
        return [
            {
                "label": classes[label],
                "answer": classes[answer],
                "count": count,
                "of": int(self.support[label]),
            }
            for label, answer, count in rows
        ]

    def worst_classes(
        self, classes: Sequence[str], mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> list[dict[str, Any]]:
        """The section `worst_classes` of report_data.json: those of which the student gets the least share right."""
        share = {
            name: (hits / self.support.clamp_min(1)).double().tolist() for name, hits in self.hits.items()
        }
        student = share[self.names[0]]
        wrong = [k for k, count in enumerate(self.support.tolist()) if count and student[k] < 1]
        wrong.sort(key=lambda k: (student[k], -int(self.support[k])))
        return [
            {
                "class": classes[k],
                "support": int(self.support[k]),
                "shares": {name: share[name][k] for name in self.names},
                "pictures": [
                    _shown(mistake, classes, mean, std, PICTURE_SIDE) for mistake in self._mistakes.get(k, ())
                ],
            }
            for k in wrong[:WORST_CLASSES]
        ]


def _shown(
    dispute: _Dispute,
    classes: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    side: int = SIDE,
) -> dict[str, Any]:
    """One image with its label and each network's answer, for report_data.json."""
    return {
        "image": image_uri(dispute.image, mean, std, side),
        "label": classes[dispute.label],
        "answers": {
            name: {"answer": classes[int(shares.argmax())], "confidence": float(shares.max())}
            for name, shares in dispute.probabilities.items()
        },
    }
