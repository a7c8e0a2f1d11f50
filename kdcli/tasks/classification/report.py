"""What a report shows of classifiers: accuracy by class, how sure they are, where they disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.tasks.classification.agreement import LogitsAgreement
from kdcli.tasks.classification.answers import MOST_CLASSES, Answers
from kdcli.tasks.classification.metrics import ClassificationMeter
from kdcli.tasks.task import Answered, Forward


class AnswersReport:
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
        answers: Answers | None = None
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
            if answers is None:
                answers = Answers(list(alike), shown[student].shape[1])
            answers.update(alike, batch["image"], batch["labels"])
        assert answers is not None, "a test side has at least one batch"
        agreed = {name: agreement.result(found) for name, found in sums.items()}
        return Answered(
            sections=_sections(answers, facts),
            metrics={name: meters[name].result(meters[name].sums()) for name in shown},
            agreement={name: figures for name, figures in agreed.items() if figures is not None},
            whole=seen >= (facts.num_samples or 0),
        )


def _sections(answers: Answers, facts: DataFacts) -> dict[str, Any]:
    """Of report_data.json."""
    named = facts.class_names if len(facts.class_names or ()) == answers.num_classes else None
    classes = named or tuple(str(index) for index in range(answers.num_classes))
    sections = {
        "reliability": answers.reliability(),
        "disagreements": answers.disagreements(classes, facts.mean, facts.std),
    }
    if answers.num_classes <= MOST_CLASSES:
        sections["class_accuracy"] = answers.class_accuracy(classes)
    return sections
