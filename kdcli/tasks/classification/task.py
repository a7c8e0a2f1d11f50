"""Classification as a task: top-1 decides, chance is one in K."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.data.facts import DataFacts
from kdcli.errors import Diagnostic
from kdcli.spec.schema import Spec
from kdcli.tasks.classification.fit import logits_fit
from kdcli.tasks.classification.metrics import ClassificationMeter


class Classification:
    """Measures `logits` against `labels`."""

    primary = "top1"

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        self.topk = tuple(topk) if 1 in topk else (1, *topk)

    def meter(self, facts: DataFacts | None = None) -> ClassificationMeter:
        """A fresh meter for the spec's k."""
        return ClassificationMeter(self.topk)

    def fits(
        self, spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
    ) -> list[Diagnostic]:
        """KD419 where the logits are too few for a side's classes, or more than the training data's."""
        return list(logits_fit(spec, outputs, train, test))

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
