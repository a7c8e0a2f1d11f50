"""What `report` and `compare` read from a run folder: spec, environment and records.

A folder that can't be read is a RunError: KD750 no run there, KD751 nothing to show yet, KD752 a file is broken or
half-written, KD753 written by a kdcli with another run format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.disk import asking, exists, real_path
from kdcli.errors import RunError
from kdcli.report.run_files import metrics_of
from kdcli.training.run_folder import DATA, SAMPLES, SPEC, env_of_run, mapping_in, text_of

POINTS = 300
"""At most so many intervals of a curve."""


@dataclass(slots=True)
class Interval:
    """Some points of a curve that follow each other. least, greatest: of the finite ones, as they are."""

    start: float
    count: int = 0
    sum_x: float = 0.0
    finite: int = 0
    sum_y: float = 0.0
    least: tuple[float, float] | None = None
    greatest: tuple[float, float] | None = None

    def add(self, x: float, y: float) -> None:
        """Take one more point."""
        self.count += 1
        self.sum_x += x
        if math.isfinite(y):
            self.finite += 1
            self.sum_y += y
            self._stretch((x, y), (x, y))

    def join(self, other: Interval) -> None:
        """Take the points of the interval that follows."""
        self.count += other.count
        self.sum_x += other.sum_x
        self.finite += other.finite
        self.sum_y += other.sum_y
        if other.least is not None and other.greatest is not None:
            self._stretch(other.least, other.greatest)

    def _stretch(self, least: tuple[float, float], greatest: tuple[float, float]) -> None:
        if self.least is None or least[1] < self.least[1]:
            self.least = least
        if self.greatest is None or greatest[1] > self.greatest[1]:
            self.greatest = greatest


class Curve:
    """A quantity over the steps, thinned while it is read: a run of any length takes the same memory.

    Up to POINTS points stay as they are; of more there are means over equal intervals (NaN where an interval has no
    finite value), and the first, the last, the least and the greatest point as they are.
    """

    def __init__(self, points: Iterable[tuple[float, float]] = ()) -> None:
        self.every = 1
        self.intervals: list[Interval] = []
        self.first = self.last = (math.nan, math.nan)
        for x, y in points:
            self.add(x, y)

    def add(self, x: float, y: float) -> None:
        """Take the next point. One that is not further than the last begins anew there: a run was resumed."""
        while self.intervals and x <= self.last[0] and self.intervals[-1].start >= x:
            self.intervals.pop()
        if not self.intervals:
            self.first = (x, y)
        if not self.intervals or self.intervals[-1].count >= self.every:
            if len(self.intervals) == POINTS:
                for one, other in zip(self.intervals[::2], self.intervals[1::2], strict=True):
                    one.join(other)
                self.intervals = self.intervals[::2]
                self.every *= 2
            self.intervals.append(Interval(x))
        self.intervals[-1].add(x, y)
        self.last = (x, y)

    def points(self) -> tuple[list[float], list[float]]:
        """The curve to be drawn: x and y, in order of x."""
        means = [
            (one.sum_x / one.count, one.sum_y / one.finite if one.finite else math.nan)
            for one in self.intervals
        ]
        if self.every > 1:
            least = [one.least for one in self.intervals if one.least is not None]
            greatest = [one.greatest for one in self.intervals if one.greatest is not None]
            means += [self.first, self.last]
            means += [min(least, key=lambda point: point[1])] if least else []
            means += [max(greatest, key=lambda point: point[1])] if greatest else []
            means.sort(key=lambda point: point[0])
        return [x for x, _ in means], [y for _, y in means]


@dataclass(slots=True)
class StepRecords:
    """What a run's records of steps say together, in bounded memory.

    last: the latest record; seconds: of all steps; images: seen in them; curves: of the total, the learning rate
    and each loss. constants: what each loss on features costs a student that answers a constant, where it was measured.
    """

    count: int = 0
    last: Mapping[str, Any] | None = None
    seconds: float = 0.0
    images: float = 0.0
    total: Curve = field(default_factory=Curve)
    rate: Curve = field(default_factory=Curve)
    losses: dict[str, Curve] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take the next record; raises KeyError, TypeError or ValueError for one of another shape."""
        at = float(record["step"])
        seconds = float(record.get("seconds", 0.0))
        self.count += 1
        self.last = {**record, "total_steps": int(record.get("total_steps", 0))}
        self.seconds += seconds
        self.images += record.get("images_per_second", 0.0) * seconds
        if "total" in record:
            self.total.add(at, float(record["total"]))
        if "lr" in record:
            self.rate.add(at, float(record["lr"]))
        if "constants" in record:
            self.constants = _numbers(record["constants"])
        for name, value in dict(record["losses"]).items():
            self.losses.setdefault(name, Curve()).add(at, float(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run's spec, environment and records, read from its folder.

    evaluations: by network, in order of steps; of several records of one step, the last. alarms: of the watch.
    warnings: what else the run warned of, each once. data: samples and class names of each side. listings: of each
    side the digests of its list of samples, several where the data changed between two parts of the run.
    """

    path: Path
    spec: Mapping[str, Any]
    spec_text: str
    env: Mapping[str, Any]
    steps: StepRecords
    evaluations: Mapping[str, tuple[Mapping[str, Any], ...]]
    finished: Mapping[str, Any] | None
    alarms: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    listings: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return real_path(self.path).name

    @property
    def primary(self) -> str:
        """The metric that decides which evaluation is best; "" where no record names one."""
        records = [self.finished] if self.finished else []
        records += [evaluation for series in self.evaluations.values() for evaluation in series]
        return next((str(record["primary"]) for record in records if record.get("primary")), "")

    @property
    def student(self) -> str:
        """The network that is trained, by the name of its evaluations."""
        return "student" if "student" in self.evaluations else next(iter(self.evaluations), "student")

    @property
    def last(self) -> Mapping[str, float]:
        """The student's last metrics."""
        if self.finished and self.finished.get("last"):
            return dict(self.finished["last"])
        series = self.evaluations.get(self.student, ())
        return dict(series[-1]["metrics"]) if series else {}

    @property
    def best(self) -> Mapping[str, float]:
        """The student's metrics at its best evaluation by the primary metric, as the run recorded it."""
        if self.finished and self.finished.get("best"):
            return dict(self.finished["best"])
        marked = [record for record in self.evaluations.get(self.student, ()) if record.get("best")]
        return dict(marked[-1]["metrics"]) if marked else self.last

    @property
    def teachers(self) -> Mapping[str, Mapping[str, float]]:
        """Every other network's last metrics."""
        others = {
            name: dict(series[-1]["metrics"])
            for name, series in self.evaluations.items()
            if name != self.student
        }
        at_the_end = self.finished.get("teachers", {}) if self.finished else {}
        return {**others, **at_the_end}

    @property
    def progress(self) -> str:
        """`finished 900 steps` or `stopped or running at step 300 of 900`."""
        if self.finished:
            return f"finished {self.finished['step']:,} steps"
        last = self.steps.last
        if last is None:
            return "not one step yet"
        return f"stopped or running at step {last['step']:,} of {last.get('total_steps', 0):,}"


def read_run(path: Path) -> RecordedRun:
    """Read a run folder; raises RunError KD750 to KD753 where there is no run that can be shown."""
    env = env_of_run(path)
    resolved, metrics = path / SPEC, path / "metrics.jsonl"
    text = text_of(resolved)
    spec = mapping_in(text, resolved)
    run = _assemble(path, spec, text, env, metrics_of(metrics) if exists(metrics) else ())
    if not run.steps.count and not run.evaluations:
        raise RunError.of("KD751", f"{path} has no step and no evaluation yet: nothing to show")
    return run


def _numbers(given: Any) -> dict[str, float]:
    """Metrics by name; raises TypeError, ValueError or OverflowError where they are none."""
    return {str(name): float(value) for name, value in dict(given).items()}


def _of_the_end(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run's end with its figures as numbers; raises as `_numbers`, or KeyError."""
    teachers = dict(record.get("teachers") or {})
    return {
        **record,
        "seconds": float(record["seconds"]),
        "last": _numbers(record.get("last") or {}),
        "best": _numbers(record.get("best") or {}),
        "teachers": {str(name): _numbers(metrics) for name, metrics in teachers.items()},
    }


def _assemble(
    path: Path,
    spec: Mapping[str, Any],
    spec_text: str,
    env: Mapping[str, Any],
    records: Iterable[dict[str, Any]],
) -> RecordedRun:
    steps = StepRecords()
    evaluations: dict[str, dict[int, Mapping[str, Any]]] = {}
    finished = None
    alarms = []
    warnings: dict[str, None] = {}
    try:
        for record in records:
            if record["kind"] == "step":
                steps.add(record)
            elif record["kind"] == "evaluation":
                entry = {**record, "metrics": _numbers(record["metrics"])}
                evaluations.setdefault(str(record["network"]), {})[record["step"]] = entry
            elif record["kind"] == "alarm":
                alarms.append({**record, "message": str(record["message"])})
            elif record["kind"] == "notice" and record.get("level") == "warning":
                warnings[str(record["message"])] = None
            elif record["kind"] == "finished":
                finished = _of_the_end(record)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError.of("KD752", f"{path / 'metrics.jsonl'} has records of an unknown shape") from error
    return RecordedRun(
        path=path,
        spec=spec,
        spec_text=spec_text,
        env=env,
        steps=steps,
        evaluations={
            name: tuple(series[number] for number in sorted(series)) for name, series in evaluations.items()
        },
        finished=finished,
        alarms=tuple(alarms),
        warnings=tuple(warnings),
        data=_data(path / DATA),
        listings={side: _listings(path, side) for side in ("train", "test")},
    )


def _data(path: Path) -> Mapping[str, Any]:
    """What data.json says; empty where it says nothing, as in a folder of an older kdcli."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _listings(path: Path, side: str) -> frozenset[str]:
    with asking(path):
        return frozenset(file.name for file in path.glob(SAMPLES.format(side=side, digest="*")))
