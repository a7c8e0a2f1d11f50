"""The records that a run yields, which report/ shows and writes down; torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RUN_FORMAT = 1
"""How records and run folders are laid out; env.json's `run_format`."""

REPORT_DATA_VERSION = 1
"""How report_data.json is laid out; its `version`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """One network of the run: its size, and for a teacher which part of it runs.

    weights: published ones, by name, and where they lie. input: the pixels of a teacher that takes others than the
    student.
    """

    name: str
    parameters: int
    flops: int | None = None
    runs_until: str | None = None
    weights: str | None = None
    input: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row of the plan's table: which layer mimics which."""

    term: str
    student_layer: str
    student_shape: str
    adapter: str
    teacher: str
    teacher_layer: str
    teacher_shape: str
    loss: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be trained; the first record.

    resumed_before_evaluation: the evaluation after resumed_step is still to be done.
    labelled: whether the training data has labels.
    pulls: by term, its gradient on the student over the task's; even_weights: by term, the `loss_weight` with which
    that would be 1. constants: by term on features, its loss where the student answers the teacher's mean at every
    place of every image, at the full weight. All three are empty before a training's first batch.
    levels: of each teacher that was measured before the start, its figure of the metric `primary`.
    samples, steps_per_epoch and total_steps are None only where `validate` has not seen the data.
    flops_size: height and width of the image that FLOPs are counted on, None where they are not. checked: how
    the networks were checked where that was not on whole images of the spec's size.
    """

    name: str
    run_dir: Path
    device: str
    processes: int
    precision: str
    networks: tuple[NetworkFacts, ...]
    pairs: tuple[Pair, ...]
    samples: int | None
    batch_size: int
    steps_per_epoch: int | None
    total_steps: int | None
    effective_lr: float
    flops_size: tuple[int, int] | None = None
    checked: str | None = None
    labelled: bool = True
    resumed_step: int = 0
    resumed_before_evaluation: bool = False
    pulls: Mapping[str, float] = field(default_factory=dict)
    even_weights: Mapping[str, float] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    primary: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step: its weighted losses as the trainee returned them.

    step counts finished steps from 1, epoch from 0. seconds is the wall time since the record
    before, images how many samples this process took in.
    """

    step: int
    total_steps: int
    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    losses: dict[str, float]
    total: float
    lr: float
    images: int
    seconds: float
    stage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One network measured on the test data."""

    step: int
    epoch: int
    network: str
    metrics: dict[str, float]
    primary: str
    best: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A message to the user; the run goes on."""

    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Notice):
    """A warning of the watch: what has gone wrong in the training; the run goes on or stops (`trainer.on_collapse`).

    code: as `kdcli explain` takes it. name: the rule, in a few words. numbers: what was measured, by name. message
    holds all of it, for reading. step: the last one that was looked at. at_evaluation: whether an evaluation showed it.
    """

    step: int
    code: str
    name: str
    numbers: Mapping[str, float]
    remedy: str
    stage: str | None = None
    level: Literal["info", "warning"] = "warning"
    at_evaluation: bool = False


def warnings(messages: Iterable[str]) -> Iterator[Notice]:
    """A warning for each message."""
    for message in messages:
        yield Notice(message=message, level="warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run has ended; the last record."""

    step: int
    seconds: float
    run_dir: Path
    student_path: Path | None
    primary: str
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the same student reaches without a teacher, for the row beside the student.

    best: at its best evaluation, empty where that is not known. source: where the figures come from, in words.
    """

    last: Mapping[str, float]
    best: Mapping[str, float] = field(default_factory=dict)
    source: str


LOWER_IS_BETTER = frozenset({"distill_loss"})
"""Metrics that fall as a student gets better; all others rise."""


def better(metric: str, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
    """Whether new metrics are better than old ones by one of them; where the old ones lack it the new ones are."""
    before, now = rising(metric, old), rising(metric, new)
    return before is None or (now is not None and now > before)


def rising(metric: str, metrics: Mapping[str, float]) -> float | None:
    """A metric as a number that rises as a student gets better; None where it is not there."""
    value = metrics.get(metric)
    return -value if value is not None and metric in LOWER_IS_BETTER else value


Record = Plan | Step | Evaluation | Saved | Notice | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row of `kdcli eval`: quality and cost of one network.

    latencies in milliseconds per forward on CPU; agreement with the student is None for itself. flops_size: height and
    width of the image that `flops` is counted on.
    """

    network: str
    metrics: dict[str, float]
    parameters: int
    flops: int | None
    file_bytes: int | None
    latency_ms_batch_1: float
    latency_ms_batch: float
    batch_size: int
    agreement: dict[str, float] | None = None
    flops_size: Sequence[int] | None = None
