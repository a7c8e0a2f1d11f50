"""What a task must answer: how outputs are measured, and what a network that knows nothing scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.errors import Diagnostic
from kdcli.spec.schema import Spec


class Meter(Protocol):
    """Takes in outputs batch by batch; its sums can be added over processes."""

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take in one batch."""
        ...

    def sums(self) -> Tensor:
        """Everything counted so far as one float64 vector that adds up over processes."""
        ...

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics from (summed) sums."""
        ...

    def unanswered(self, sums: Tensor) -> int:
        """For how many samples the network gave no usable answer (NaN, infinite); they count as wrong."""
        ...

    def unanswered_samples(self) -> list[int]:
        """Which of these this process has seen, by their place in the data, each once, in order."""
        ...


class Task(Protocol):
    """One task; higher `primary` is better."""

    primary: str

    def meter(self, facts: DataFacts | None = None) -> Meter:
        """A fresh meter for data of these facts; without them it learns what it needs from its batches."""
        ...

    def fits(
        self, spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
    ) -> list[Diagnostic]:
        """Whether what the student gives fits the data of both sides; asked by the build and by `validate`."""
        ...

    def chance(self, num_classes: int) -> float:
        """The primary metric of a network that guesses."""
        ...

    def near_chance(self, metrics: Mapping[str, float], num_classes: int, samples: int) -> bool:
        """Whether these metrics, over so many samples, can't be told from guessing."""
        ...
