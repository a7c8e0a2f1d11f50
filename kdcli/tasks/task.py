"""What a task answers: all that the training, the checks and the commands ask that differs by task.

A task of one's own is new files: an implementation of `Task`, a record of it in TASKS (kdcli/tasks/__init__.py),
and where they are needed data sets in DATASETS and modules with their losses in MODULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.distill.deployed import DeployedStudent
from kdcli.distill.labels import Labels
from kdcli.errors import Diagnostic, SpecPath
from kdcli.models.network import Network
from kdcli.spec.places import Places
from kdcli.spec.schema import DataPart, ModuleSpec, Spec
from kdcli.tasks.portable import Portable, Tensors

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


class Agreement(Protocol):
    """How often two networks say the same; its sums can be added over batches and processes."""

    def sums(self, student: Outputs, teacher: Outputs) -> Tensor | None:
        """Of one batch; None where the two can't be compared."""
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
        """The labels of one of which only its file may say what its classes are called."""
        ...

    def not_scored(
        self, teacher: str, labels: Labels, outputs: Mapping[str, Any], facts: DataFacts
    ) -> str | None:
        """Why a network's outputs are no answers to the data's classes; None where they are."""
        ...


class Drawing(Protocol):
    """Pictures in a folder; drawn: how many there are."""

    drawn: int

    def draw(self, shown: Mapping[str, Outputs], batch: Batch) -> None:
        """Draw the images of a batch with each network's outputs, while they are few; raises RunError KD567."""
        ...


class Kept(Protocol):
    """What `kdcli eval` can leave on disk: predictions in a file, pictures in a folder."""

    def rows(self, meter: Any, sums: Tensor) -> Sequence[Any]:
        """One network's predictions. meter: the task's own; sums: over all processes."""
        ...

    def save(self, path: Path, rows: Sequence[Any]) -> None:
        """Write them to a file; raises OSError."""
        ...

    def drawing(self, folder: Path, facts: DataFacts) -> Drawing:
        """What draws the first test images."""
        ...


class Deployment(Protocol):
    """How a student is exported, and on which images the file is proved.

    sized: whether the user may choose the input's size (`--input-size`).
    """

    sized: bool

    def portable(self, spec: Spec, net: Network | DeployedStudent) -> Portable:
        """The student as one function of tensors; takes the network over."""
        ...

    def taken(self, batches: Iterator[Batch]) -> list[Batch]:
        """The test batches to prove on, of at least two images together; empty where there are none."""
        ...

    def made_up(self, spec: Spec, facts: DataFacts, size: tuple[int, int] | None) -> list[Batch]:
        """The same where there are none; raises UsageError where the size has to be given."""
        ...

    def inputs(self, batches: Sequence[Batch], size: tuple[int, int] | None) -> Tensors:
        """What the exported student is given of them; raises UsageError where they don't fit the size."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What networks answered on test images, for a report.

    sections: of report_data.json (kdcli.report.recorded_run). metrics, agreement: by network. whole: whether
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


class Task(Protocol):
    """One task; higher `primary` is better.

    name: its key in TASKS. by_chance: the metric that `chance` and `near_chance` are about. rehearses: whether
    networks are checked on fake tensors, or on real ones because values decide what they compute. own_size: whether
    the images of `sample` have a size of the task's own, and not the data's. why_zero: help where the gradient of
    the task's own loss is zero. agreement, matching, kept, deploy, report: None where the task has none.
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

    def modules(self, spec: Spec) -> tuple[ModuleSpec, ...]:
        """The student's modules: `net`, with what goes without saying."""
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
        """What the test data's classes are numbered by, where a file tells it without the training data."""
        ...

    def agree(
        self, spec: Spec, train: DataFacts | None, test: DataFacts | None, places: Places
    ) -> list[Diagnostic]:
        """Whether both sides of the data, the spec and the truth that is measured by agree.

        train, test: None where a side can't be read.
        """
        ...

    def check_truth(self, spec: Spec, test: DataFacts, places: Places) -> list[Diagnostic]:
        """What `agree` says of the truth, where only the test data is opened."""
        ...

    def fits(self, spec: Spec, outputs: Outputs, train: DataFacts, test: DataFacts) -> list[Diagnostic]:
        """Whether what the student gives fits the data of both sides; asked by the build and by `validate`."""
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
