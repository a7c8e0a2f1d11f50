"""What `report` and `compare` read from a run folder: spec, environment, records, and report_data.json.

A folder that can't be read is a RunError: KD750 no run there, KD751 nothing to show yet, KD752 a file is broken or
half-written, KD753 written by a kdcli with another run format.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kdcli.disk import exists, real_path
from kdcli.errors import RunError
from kdcli.records import REPORT_DATA_VERSION, Comparison
from kdcli.report.run_files import metrics_of
from kdcli.training.run_folder import SPEC, env_of_run, mapping_in, text_of

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
    and each loss.
    """

    count: int = 0
    last: Mapping[str, Any] | None = None
    seconds: float = 0.0
    images: float = 0.0
    total: Curve = field(default_factory=Curve)
    rate: Curve = field(default_factory=Curve)
    losses: dict[str, Curve] = field(default_factory=dict)

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
        for name, value in dict(record["losses"]).items():
            self.losses.setdefault(name, Curve()).add(at, float(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run's spec, environment and records, read from its folder.

    evaluations: by network, in order of steps; of several records of one step, the last. alarms: of the watch.
    """

    path: Path
    spec: Mapping[str, Any]
    spec_text: str
    env: Mapping[str, Any]
    steps: StepRecords
    evaluations: Mapping[str, tuple[Mapping[str, Any], ...]]
    finished: Mapping[str, Any] | None
    alarms: tuple[Mapping[str, Any], ...] = ()

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
    try:
        for record in records:
            if record["kind"] == "step":
                steps.add(record)
            elif record["kind"] == "evaluation":
                entry = {**record, "metrics": _numbers(record["metrics"])}
                evaluations.setdefault(str(record["network"]), {})[record["step"]] = entry
            elif record["kind"] == "alarm":
                alarms.append({**record, "message": str(record["message"])})
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
    )


_DATA_URI = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Share of right answers by class, for each network; support: samples of each class."""

    classes: tuple[str, ...]
    support: tuple[int, ...]
    networks: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram: mean confidence, share of right answers, number of samples."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One image on which the networks differ: each network's answer and its confidence."""

    image: str
    label: str | None
    answers: Mapping[str, tuple[str, float]]


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """Feature maps of one pair of layers on a few images: rows of (image, student, teacher) as data URIs."""

    title: str
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Similarity:
    """Linear CKA between the layers of student (rows) and teacher (columns)."""

    teacher: str
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class DetectedImage:
    """One image with boxes by network; a box is x1, y1, x2, y2 in pixels, a label and perhaps a score."""

    image: str
    width: float
    height: float
    boxes: Mapping[str, tuple[tuple[float, float, float, float, str, float | None], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Content of report_data.json: what a report shows beyond the run's records. Every section may be missing.

        {
          "version": 1,
          "primary": "top1",
          "comparison": [                                     # the rows of `kdcli eval`, the student's first
            {"network", "metrics": {name: number}, "parameters", "flops" | null, "file_bytes" | null,
             "latency_ms_batch_1", "latency_ms_batch", "batch_size", "agreement": {name: number} | null,
             "flops_size": [height, width] of the image that they are counted on}],
          "class_accuracy": {                               # shares from 0 to 1; null: no samples
            "classes": [name, ...], "support": [samples of each class, ...],
            "networks": {"student": [share | null, ...], "teacher0": [...]}},
          "reliability": {                                  # a list of bins for each network
            "student": [{"confidence": 0.95, "accuracy": 0.9, "count": 312}, ...], "teacher0": [...]},
          "disagreements": [                                  # the worst first
            {"image": data URI, "label": name | null,
             "answers": {"student": {"answer": name, "confidence": 0.7}, "teacher0": {...}}}],
          "features": [                                       # one for each pair, its maps beside the image
            {"term", "student_layer", "teacher", "teacher_layer",
             "rows": [{"image": data URI, "student": data URI, "teacher": data URI}]}],
          "cka": [                                          # values[i][j]: student layer i, teacher layer j
            {"teacher", "student_layers": [path, ...], "teacher_layers": [path, ...], "values": [[...], ...]}],
          "detections": [                                     # boxes in pixels of the image
            {"image": data URI, "width": 640, "height": 480,
             "boxes": {"truth": [[x1, y1, x2, y2, label, score | null], ...], "student": [...]}}]
        }

    Images are PNG or JPEG as `data:image/png;base64,...`. A file of another shape is KD752, of another version
    KD753.
    """

    primary: str = ""
    comparison: tuple[Comparison, ...] = ()
    class_accuracy: ClassAccuracy | None = None
    reliability: Mapping[str, tuple[Bin, ...]] | None = None
    disagreements: tuple[Disagreement, ...] = ()
    features: tuple[FeatureMaps, ...] = ()
    cka: tuple[Similarity, ...] = ()
    detections: tuple[DetectedImage, ...] = ()


def read_report_data(path: Path) -> ReportData:
    """Read report_data.json; where there is no such file every section is empty."""
    if not exists(path):
        return ReportData()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError.of("KD750", f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunError.of(
            "KD752", f"{path} is broken or half-written", "remove it or make it anew"
        ) from error
    if not isinstance(value, dict) or value.get("version") != REPORT_DATA_VERSION:
        version = value.get("version") if isinstance(value, dict) else None
        raise RunError.of(
            "KD753", f"{path} has version {version}; this kdcli reads version {REPORT_DATA_VERSION}"
        )

    def section(name: str, read: Callable[[Any], T], default: T) -> T:
        if not value.get(name):
            return default
        try:
            return read(value[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"`{name}` in {path} has an unknown shape ({type(error).__name__}: {error})"
            raise RunError.of("KD752", message) from error

    return ReportData(
        primary=section("primary", str, ""),
        comparison=section("comparison", lambda rows: tuple(Comparison(**row) for row in rows), ()),
        class_accuracy=section("class_accuracy", _class_accuracy, None),
        reliability=section("reliability", _reliability, None),
        disagreements=section("disagreements", lambda rows: tuple(map(_disagreement, rows)), ()),
        features=section("features", lambda rows: tuple(map(_features, rows)), ()),
        cka=section("cka", lambda rows: tuple(map(_similarity, rows)), ()),
        detections=section("detections", lambda rows: tuple(map(_detection, rows)), ()),
    )


def _class_accuracy(value: Any) -> ClassAccuracy:
    classes = tuple(map(str, value["classes"]))
    networks = {
        str(name): tuple(None if share is None else float(share) for share in shares)
        for name, shares in value["networks"].items()
    }
    support = tuple(map(int, value.get("support", [0] * len(classes))))
    _same_length(classes, support, *networks.values())
    return ClassAccuracy(classes, support, networks)


def _reliability(value: Any) -> Mapping[str, tuple[Bin, ...]]:
    return {
        str(name): tuple(
            Bin(float(one["confidence"]), float(one["accuracy"]), int(one["count"])) for one in bins
        )
        for name, bins in value.items()
    }


def _disagreement(value: Any) -> Disagreement:
    answers = {
        str(name): (str(answer["answer"]), float(answer["confidence"]))
        for name, answer in value["answers"].items()
    }
    label = value.get("label")
    return Disagreement(_image(value["image"]), None if label is None else str(label), answers)


def _features(value: Any) -> FeatureMaps:
    title = f"{value['student_layer']} and {value['teacher']}: {value['teacher_layer']} ({value['term']})"
    rows = tuple(
        (_image(row["image"]), _image(row["student"]), _image(row["teacher"])) for row in value["rows"]
    )
    return FeatureMaps(title, rows)


def _similarity(value: Any) -> Similarity:
    student, teacher = tuple(map(str, value["student_layers"])), tuple(map(str, value["teacher_layers"]))
    values = tuple(tuple(map(float, row)) for row in value["values"])
    _same_length(student, values)
    _same_length(teacher, *values)
    return Similarity(str(value["teacher"]), student, teacher, values)


def _detection(value: Any) -> DetectedImage:
    boxes = {
        str(name): tuple(
            (float(x1), float(y1), float(x2), float(y2), str(label), None if score is None else float(score))
            for x1, y1, x2, y2, label, score in listed
        )
        for name, listed in value["boxes"].items()
    }
    return DetectedImage(_image(value["image"]), float(value["width"]), float(value["height"]), boxes)


def _image(value: Any) -> str:
    if not isinstance(value, str) or not _DATA_URI.fullmatch(value):
        raise ValueError("an image that is no PNG or JPEG data URI")
    return value


def _same_length(first: Sequence[Any], *others: Sequence[Any]) -> None:
    if any(len(other) != len(first) for other in others):
        raise ValueError("lists of unequal length")
