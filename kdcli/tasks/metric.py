"""A metric of one's own: what `evaluator: {type: mine:F1}` of the test data may be, beside the task's metrics."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.errors import KdError, RunError, SpecError, SpecPath
from kdcli.failures import with_place
from kdcli.spec.plugins import constructed
from kdcli.spec.tables import Target
from kdcli.tasks.task import Kept, Meter, Task, one_answer

EVALUATOR: SpecPath = ("dataset", "test", "dataset", "kwargs", "evaluator")


class Metric(Protocol):
    """Takes in a network's outputs batch by batch; its sums are added over processes before they become metrics.

    One is made for each network and each evaluation. The constructor's keyword-only parameters are the `kwargs` of
    the spec; a positional parameter `facts` gets the test data's DataFacts (num_classes, class_names, ...; None for
    what is not known yet, as when `validate` builds it). The task's own metrics stay, and the metric's stand beside
    them. Where the class says `primary = "f1"`, the best student is the one whose `f1` is highest, instead of the
    task's own choice (top1, AP).
    """

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take in one batch. outputs: of the network (`logits` [B, K], `dt_bboxes` ...); batch: `labels` [B] ..."""
        ...

    def sums(self) -> Tensor:
        """Everything counted so far, a vector of a fixed length, also before the first batch.

        Each sample is seen by one process, and the vectors of all processes are added as float64.
        """
        ...

    def result(self, sums: Tensor) -> Mapping[str, float]:
        """The metrics by name from the added sums [same length], on the CPU; higher is better. No sample: finite."""
        ...


class Meters:
    """The task's meter and a metric of one's own as one meter: their sums lie one behind the other."""

    def __init__(self, task: Meter, metric: Metric, name: str, primary: str | None = None) -> None:
        self.task, self.metric, self.name, self.primary = task, metric, name, primary
        self.unusable = task.unusable

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take in one batch."""
        self.task.update(outputs, batch)
        try:
            self.metric.update(outputs, batch)
        except Exception as error:
            raise self._failed("update", error) from error

    def sums(self) -> Tensor:
        """The task's sums, then the metric's."""
        own = self._own()
        task = self.task.sums()
        return torch.cat([task, own.to(task.device)])

    def result(self, sums: Tensor) -> dict[str, float]:
        """The metrics of both."""
        length = len(self._own())
        metrics = self.task.result(self.of_task(sums))
        try:
            result = self.metric.result(sums[len(sums) - length :].cpu())
            own = {str(name): float(value) for name, value in result.items()}
        except Exception as error:
            raise self._failed("result", error) from error
        help = f"it gives {', '.join(f'`{name}`' for name in own)}"
        if self.primary is not None and self.primary not in {**metrics, **own}:
            message = f"`result` of the metric `{self.name}` gives no `{self.primary}`, its `primary`"
            raise RunError.of("KD495", message, help)
        taken = sorted(own.keys() & metrics.keys())
        if taken:
            message = f"the metric `{self.name}` calls a value `{taken[0]}`, as the task calls its own"
            raise RunError.of("KD495", message, f"{help}; give it another name")
        return {**metrics, **own}

    @property
    def most(self) -> int:
        """As the task's meter says; 0 of one whose sums have a length of their own."""
        return getattr(self.task, "most", 0)

    def widen(self, most: int) -> None:
        """As the task's meter does, where its sums grow."""
        if most:
            self.task.widen(most)  # type: ignore[attr-defined]

    def of_task(self, sums: Tensor) -> Tensor:
        """The task's part of (summed) sums."""
        return sums[: len(sums) - len(self._own())]

    def unanswered(self, sums: Tensor) -> int:
        """For how many samples the network gave no usable answer, as the task says."""
        return self.task.unanswered(self.of_task(sums))

    def unanswered_samples(self) -> list[int]:
        """Which of these this process has seen, as the task says."""
        return self.task.unanswered_samples()

    def one_answer(self, sums: Tensor) -> int | None:
        """The class that all samples got, as the task says."""
        return one_answer(self.task, self.of_task(sums))

    def _own(self) -> Tensor:
        try:
            return torch.as_tensor(self.metric.sums()).detach().double().reshape(-1)
        except Exception as error:
            raise self._failed("sums", error) from error

    def _failed(self, method: str, error: Exception) -> KdError:
        if isinstance(error, KdError):
            return error
        help = "what a metric's methods get and give: kdcli/tasks/metric.py"
        return RunError.of(
            "KD495", f"`{method}` of the metric `{self.name}` failed: {with_place(error)}", help
        )


class WithMetric:
    """A task whose networks are measured by a metric of one's own too; in everything else the task itself."""

    def __init__(self, task: Task, target: Target, kwargs: Mapping[str, Any], name: str) -> None:
        self._task, self._target, self._kwargs, self._name = task, target, kwargs, name
        made = self.metric(DataFacts())
        missing = [
            method for method in ("update", "sums", "result") if not callable(getattr(made, method, None))
        ]
        if missing:
            message = f"`{name}` gives a `{type(made).__name__}` without `{missing[0]}`, which is no metric"
            help = "a metric has update(outputs, batch), sums() and result(sums)"
            raise SpecError.at((*EVALUATOR, "type"), "KD505", message, help)
        self.primary = str(getattr(made, "primary", task.primary))
        self.kept = None if task.kept is None else _Kept(task.kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def metric(self, facts: DataFacts) -> Any:
        """A fresh metric for data of these facts; SpecError KD505 where it can't be made."""
        wants = "facts" in inspect.signature(self._target.load()).parameters
        given = {"facts": facts, **self._kwargs} if wants else self._kwargs
        return constructed(self._target, given, self._name, EVALUATOR)

    def meter(self, facts: DataFacts | None = None) -> Meters:
        """A fresh meter of the task's with a fresh metric."""
        return Meters(self._task.meter(facts), self.metric(facts or DataFacts()), self._name, self.primary)


class _Kept:
    """What a task keeps of its own meter."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def rows(self, meter: Meters, sums: Tensor) -> Sequence[Any]:
        """One network's predictions."""
        return self._kept.rows(meter.task, meter.of_task(sums))
