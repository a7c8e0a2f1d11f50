"""Classification as a task: top-1 decides, chance is one in K."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from kdcli.data.facts import DataFacts
from kdcli.errors import Diagnostic
from kdcli.spec.places import Places
from kdcli.spec.schema import DataPart, ModuleSpec, Spec
from kdcli.tasks.classification.agreement import LogitsAgreement
from kdcli.tasks.classification.deploy import ClassifierDeployment
from kdcli.tasks.classification.fit import logits_fit
from kdcli.tasks.classification.labels import ClassMatching
from kdcli.tasks.classification.metrics import ClassificationMeter
from kdcli.tasks.classification.report import AnswersReport
from kdcli.tasks.classification.sample import classification_sample
from kdcli.tasks.task import Agreement, Deployment, Kept, Matching, Report

POST_PROCESS = ModuleSpec(name="post_process", type="base_cls_postprocess")
"""What a student without a postprocess gets: cross entropy on its logits."""


class Classification:
    """Measures `logits` against `labels`."""

    name = "classification"
    primary = by_chance = "top1"
    rehearses: Literal["fake", "real"] = "fake"
    own_size = False
    why_zero = "its own `loss_weight` is 0, or a ReLU of the student cuts everything off"

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        self.topk = tuple(topk) if 1 in topk else (1, *topk)
        self.agreement: Agreement | None = LogitsAgreement()
        self.matching: Matching | None = ClassMatching()
        self.kept: Kept | None = None
        self.deploy: Deployment | None = ClassifierDeployment()
        self.report: Report | None = AnswersReport(self.meter)

    def modules(self, spec: Spec) -> tuple[ModuleSpec, ...]:
        """`net`, with the implicit post-process where it has none."""
        has_loss = any(module.type.endswith("_postprocess") for module in spec.net)
        return spec.net if has_loss else (*spec.net, POST_PROCESS)

    def sample(
        self,
        part: DataPart | None,
        facts: DataFacts,
        *,
        channels: int = 3,
        modules: Iterable[ModuleSpec] = (),
        aligned: bool = False,
    ) -> dict[str, Any]:
        """`image`, `labels`, `indices`; `mixed_labels` where the data is mixed."""
        return classification_sample(part, facts, channels)

    def training_classes(self, spec: Spec, places: Places) -> dict[int, str] | None:
        """Nothing: only the training data itself says its classes."""
        return None

    def agree(
        self, spec: Spec, train: DataFacts | None, test: DataFacts | None, places: Places
    ) -> list[Diagnostic]:
        """Nothing: the classes of both sides are matched where the data is opened (kdcli.data.classes)."""
        return []

    def check_truth(self, spec: Spec, test: DataFacts, places: Places) -> list[Diagnostic]:
        """Nothing: the labels come with the images."""
        return []

    def fits(
        self, spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
    ) -> list[Diagnostic]:
        """KD419 where the logits are too few for a side's classes, or more than the training data's."""
        return list(logits_fit(spec, outputs, train, test))

    def meter(self, facts: DataFacts | None = None) -> ClassificationMeter:
        """A fresh meter for the spec's k."""
        return ClassificationMeter(self.topk)

    def answers(self, outputs: Mapping[str, Any]) -> bool:
        """Whether there are logits."""
        return "logits" in outputs

    def judges(self, outputs: Mapping[str, Any], facts: DataFacts, *, weights: bool) -> bool:
        """Whether it has logits, and the data's classes are known."""
        return bool(facts.num_classes) and self.answers(outputs)

    def chance(self, num_classes: int) -> float:
        """Top-1 of a network that guesses, in percent."""
        return 100.0 / num_classes

    def near_chance(self, metrics: Mapping[str, float], num_classes: int, samples: int) -> bool:
        """Within three standard errors of guessing, or below twice what guessing gives.

        False where the samples are too few to tell half of the way to perfect from guessing.
        """
        share = 1.0 / num_classes
        error = 100.0 * math.sqrt(share * (1.0 - share) / max(samples, 1))
        if 3.0 * error > 0.5 * (100.0 - self.chance(num_classes)):
            return False
        return metrics[self.primary] <= max(
            self.chance(num_classes) + 3.0 * error, min(2.0 * 100.0 * share, 60.0)
        )
