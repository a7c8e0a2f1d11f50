"""The Task protocol: everything that differs by task, as training, checks and commands ask for it.

A task of one's own is new files: an implementation of `Task`, a record of it in TASKS (kdcli/tasks/__init__.py),
and where they are needed data sets in DATASETS and modules with their losses in MODULES.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kdcli.data.facts import DataFacts
from kdcli.distill.teacher import Labels
from kdcli.distill.trainee import DeployedStudent
from kdcli.errors import Diagnostic, SpecPath
from kdcli.models.network import Network
from kdcli.models.weights import load_weights
from kdcli.spec.places import Places
from kdcli.spec.schema import DataPart, LayoutSpec, ModuleSpec, Spec

Batch = Mapping[str, Any]
Outputs = Mapping[str, Any]
Forward = Callable[[Batch], Outputs]


class Meter(Protocol):
    """Takes in outputs batch by batch; its sums can be added over processes.

    unusable: the end of a sentence about samples that count as unanswered: "gives logits that are NaN".
    """

    unusable: str

    def update(self, outputs: Outputs, batch: Batch) -> None:
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


ENOUGH_OTHERS = 10
"""So many samples of other classes don't get the same answer by chance."""


def one_answer(meter: Meter, sums: Tensor) -> int | None:
    """The class that all samples got though ENOUGH_OTHERS of them are of others; None where that isn't so.

    Asks a meter that has a method of this name; answers of other kinds have no such class.
    """
    asked = getattr(meter, "one_answer", None)
    found: int | None = None if asked is None else asked(sums)
    return found


class Agreement(Protocol):
    """How often two networks predict the same; its sums can be added over batches and processes."""

    def sums(self, student: Outputs, teacher: Outputs) -> Tensor | None:
        """The sums of one batch; None where the two outputs can't be compared."""
        ...

    def result(self, sums: Tensor) -> dict[str, float] | None:
        """The figures from (summed) sums; None where nothing was compared."""
        ...


class Matching(Protocol):
    """How a teacher's classes are matched with the data's."""

    def asked(
        self,
        said: Any,
        teacher: str,
        names: Sequence[str] | None,
        facts: DataFacts,
        path: SpecPath,
        *,
        known: bool,
    ) -> Labels:
        """The labels of a teacher whose `classes` stand at `path`; raises SpecError KD471, KD472."""
        ...

    def stated(self, teacher: str, names: Sequence[str] | None, facts: DataFacts) -> Labels:
        """The labels of a teacher without `classes`; names: of its classes, where its file states them."""
        ...

    def not_scored(
        self, teacher: str, labels: Labels, outputs: Mapping[str, Any], facts: DataFacts
    ) -> str | None:
        """Why a network can't be scored on the data's classes; None where it can."""
        ...


class Drawing(Protocol):
    """Writes pictures into a folder; drawn: how many so far."""

    drawn: int

    def draw(self, shown: Mapping[str, Outputs], batch: Batch) -> None:
        """Draw the images of a batch with each network's outputs, while they are few; raises RunError KD567."""
        ...


class Kept(Protocol):
    """What `kdcli eval` can save: predictions in a file, pictures in a folder."""

    def rows(self, meter: Any, sums: Tensor) -> Sequence[Any]:
        """One network's predictions. meter: the task's own; sums: over all processes."""
        ...

    def save(self, path: Path, rows: Sequence[Any]) -> None:
        """Write them to a file; raises OSError."""
        ...

    def drawing(self, folder: Path, facts: DataFacts) -> Drawing:
        """A Drawing of the first test images."""
        ...


class Deployment(Protocol):
    """How a student is exported, and on which images the file is proved.

    sized: whether the user may choose the input's size (`--input-size`).
    """

    sized: bool

    def portable(self, net: Network | DeployedStudent, *, aligned: bool) -> Portable:
        """The student as one function of tensors; takes the network over."""
        ...

    def backbone(
        self,
        spec: Spec,
        net: Network | DeployedStudent,
        untrained: Sequence[str],
        stated: Mapping[str, LayoutSpec],
    ) -> Portable:
        """A student without a trained head as a function to its features; untrained: parameters that never trained,
        stated: layouts that the spec states, by tap.

        Raises RunError KD244 where the task's students can't be exported so.
        """
        ...

    def taken(self, batches: Iterator[Batch]) -> list[Batch]:
        """The test batches to prove on, of at least two images together; empty where there are none."""
        ...

    def made_up(self, spec: Spec, facts: DataFacts, size: tuple[int, int] | None) -> list[Batch]:
        """Made-up batches for data that can't be read; raises UsageError where the size has to be given."""
        ...

    def inputs(self, batches: Sequence[Batch], size: tuple[int, int] | None) -> Tensors:
        """The exported student's input tensors from batches; raises UsageError where they don't fit the size."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Report sections and metrics from networks' outputs on test images.

    sections: of report_data.json (kdcli.report.report_data). metrics, agreement: by network. whole: whether
    all of the test data was answered; else what the run recorded stands before these metrics.
    """

    sections: Mapping[str, Any]
    metrics: Mapping[str, dict[str, float]] = field(default_factory=dict)
    agreement: Mapping[str, dict[str, float]] = field(default_factory=dict)
    whole: bool = False


class Report(Protocol):
    """What a report shows of a task's own; layers: whether feature maps and similar layers are shown too."""

    layers: bool

    def answered(
        self, networks: Mapping[str, Forward], batches: Iterator[Batch], facts: DataFacts
    ) -> Answered | None:
        """From one pass over the first test images; None where there is no one answer to show.

        networks: from a batch to outputs, the student first. batches: as many as may be looked at.
        """
        ...


class Uninformed(Protocol):
    """What the task's loss is for a network whose answer does not depend on the image."""

    loss_name: str
    """Of which of the student's losses."""

    def targets(self, batch: Batch) -> Tensor | None:
        """How often each answer is right in a batch [K]; adds up over batches and processes. None: not known."""
        ...

    def labels(self, batch: Batch) -> Tensor | None:
        """The labels [B] that are all `targets` reads of a batch, so that those of several can be counted together."""
        ...

    def value(self, student: nn.Module, targets: Tensor, *, mixed: bool) -> float | None:
        """The loss of the best fixed answer to such (summed) targets; None where the student's loss is not known.

        mixed: whether batches were mixed.
        """
        ...


class Task(Protocol):
    """One task; higher `primary` is better.

    name: its key in TASKS. by_chance: the metric that `chance` and `near_chance` are about. rehearses: whether
    networks are checked on fake tensors, or on real ones because values decide what they compute. own_size: whether
    the images of `sample` have a size of the task's own where the facts have none. why_zero: help where the gradient of
    the task's own loss is zero. agreement, matching, kept, deploy, report, uninformed: None where the task has none.
    """

    name: str
    primary: str
    by_chance: str
    rehearses: Literal["fake", "real"]
    own_size: bool
    why_zero: str
    agreement: Agreement | None
    matching: Matching | None
    kept: Kept | None
    deploy: Deployment | None
    report: Report | None
    uninformed: Uninformed | None

    def modules(self, spec: Spec) -> tuple[ModuleSpec, ...]:
        """The student's modules: `net`, with those that are implied (a classifier's post-process)."""
        ...

    def sample(
        self,
        part: DataPart | None,
        facts: DataFacts,
        *,
        channels: int = 3,
        modules: Iterable[ModuleSpec] = (),
        aligned: bool = False,
    ) -> dict[str, Any]:
        """A made-up batch: the shapes of the training data and none of its values; fake under a fake mode.

        part: of the training data. channels: where the data does not say. modules: what is to run on it.
        aligned: as `runtime.aligned` says.
        """
        ...

    def training_classes(self, spec: Spec, places: Places) -> dict[int, str] | None:
        """The training data's class names by id, where a file states them without opening that data; else None."""
        ...

    def agree(
        self, spec: Spec, train: DataFacts | None, test: DataFacts | None, places: Places
    ) -> list[Diagnostic]:
        """Findings where the two sides of the data, the spec and the annotations to measure by disagree.

        train, test: None where a side can't be read.
        """
        ...

    def check_truth(self, spec: Spec, test: DataFacts, places: Places) -> list[Diagnostic]:
        """The findings of `agree` about the annotations to measure by, where only the test data is opened."""
        ...

    def fits(self, spec: Spec, outputs: Outputs, train: DataFacts, test: DataFacts) -> list[Diagnostic]:
        """Findings where the student's outputs don't fit the data of both sides; for the build and `validate`."""
        ...

    def meter(self, facts: DataFacts | None = None) -> Meter:
        """A fresh meter for data of these facts; without them it learns what it needs from its batches."""
        ...

    def answers(self, outputs: Outputs) -> bool:
        """Whether a network's outputs can be measured: a teacher whose list ends early may have no answer."""
        ...

    def judges(self, outputs: Outputs, facts: DataFacts, *, weights: bool) -> bool:
        """Whether a teacher is measured before the training. weights: whether a job says where its own are."""
        ...

    def chance(self, num_classes: int) -> float:
        """The metric `by_chance` of a network that guesses; num_classes: 0 where the data has none."""
        ...

    def near_chance(self, metrics: Mapping[str, float], num_classes: int, samples: int) -> bool:
        """Whether these metrics, over so many samples, can't be told from guessing."""
        ...


Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class ComparedOutputs:
    """Outputs of the student and of an exported file in pairs, by name, the student's first.

    boxes: how many there are, None where the outputs have no boxes; alone: how many have no counterpart.
    """

    pairs: Sequence[tuple[str, Tensor, Tensor]]
    boxes: int | None = None
    alone: int = 0


class Portable(nn.Module):
    """The student as one module from tensors to tensors, which is exported. Takes the network over.

    inputs, outputs: their names. says: what else whoever runs the file must know, by key. forward is what
    exporters follow; eager what the student itself answers, with which every file is compared.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    says: Mapping[str, str] = {}
    net: Network | DeployedStudent

    @abstractmethod
    def eager(self, *inputs: Tensor) -> Tensors:
        """The student's own outputs."""

    def compared(self, expected: Tensors, found: Tensors) -> ComparedOutputs:
        """Pairs of the student's outputs and a file's; raises RunError KD761 where they can't be paired."""
        return ComparedOutputs(list(zip(self.outputs, expected, found, strict=True)))

    @property
    def followed(self) -> bool:
        """Whether exporters can make a graph of it."""
        return True

    def state(self) -> dict[str, Tensor]:
        """The weights in an exported file."""
        return self.net.exported_state()

    def load(self, path: Path) -> None:
        """Read a file that `state` was written to."""
        load_weights(self.net, path)

    def class_names(self, facts: DataFacts) -> tuple[str, ...] | None:
        """Names of the exported student's classes, in order."""
        return facts.class_names

    def warm_up(self, *inputs: Tensor) -> Portable:
        """Run once, so that lazily made state exists; returns itself."""
        with torch.no_grad():
            self.eager(*inputs)
        return self


def without_training_only(net: Network) -> None:
    """Delete the modules that serve training alone from a network, in place."""
    for name in net.training_only():
        delattr(net, name)
