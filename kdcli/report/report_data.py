"""report_data.json as it is read: what a report shows beyond a run's records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdcli.disk import exists
from kdcli.errors import RunError
from kdcli.records import REPORT_DATA_VERSION, Comparison

REPORT_DATA = "report_data.json"
"""Its name in a run's folder."""

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
class Mistaken:
    """A class that was answered for another: how often, of how many samples of the right class."""

    label: str
    answer: str
    count: int
    of: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each class was answered for each; networks: by name, rows of right classes with columns of answers.

    Of many classes there is no matrix, only the pairs that are mistaken most often.
    """

    classes: tuple[str, ...]
    networks: Mapping[str, tuple[tuple[int, ...], ...]]
    mistaken: Mapping[str, tuple[Mistaken, ...]]


@dataclass(frozen=True, slots=True)
class WorstClass:
    """A class that the student answers badly, each network's share of right answers, and images of it."""

    name: str
    support: int
    shares: Mapping[str, float]
    pictures: tuple[Disagreement, ...]


@dataclass(frozen=True, slots=True)
class PrecisionByClass:
    """Detectors' average precision in percent by class, and precision at each recall by overlap (IoU).

    boxes: of each class, sizes: small, medium and large ones, that had to be found.
    """

    classes: tuple[str, ...]
    boxes: tuple[int, ...]
    sizes: Mapping[str, int]
    recalls: tuple[float, ...]
    ap: Mapping[str, tuple[float | None, ...]]
    ap50: Mapping[str, tuple[float | None, ...]]
    curves: Mapping[str, Mapping[str, tuple[float | None, ...]]]


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
          "warnings": [text, ...],                            # about the figures of this file
          "comparison": [                                     # the rows of `kdcli eval`, the student's first
            {"network", "metrics": {name: number}, "parameters", "flops" | null, "file_bytes" | null,
             "latency_ms_batch_1", "latency_ms_batch", "batch_size", "agreement": {name: number} | null,
             "flops_size": [height, width] of the image that they are counted on}],
          "class_accuracy": {                               # shares from 0 to 1; null: no samples
            "classes": [name, ...], "support": [samples of each class, ...],
            "networks": {"student": [share | null, ...], "teacher0": [...]}},
          "measured": {"images": 2000, "of": 10000},        # how many test images the sections below are of
          "confusion": {                                    # of up to 30 classes; else both are empty
            "classes": [name, ...], "networks": {"student": [[count of each answer, ...] by right class, ...]},
            "mistaken": {"student": [{"label", "answer", "count", "of": samples of the label}]}},
          "worst_classes": [                                # the student's, the worst first
            {"class", "support", "shares": {"student": 0.8}, "pictures": [as in disagreements]}],
          "precision": {                                    # of detectors, in percent; null: no box to be found
            "classes": [name, ...], "boxes": [how many to be found, ...], "sizes": {"small", "medium", "large"},
            "recalls": [0, 0.05, ...],
            "networks": {"student": {"ap": [...], "ap50": [...], "curves": {"0.5": [at each recall]}}}},
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
    warnings: tuple[str, ...] = ()
    comparison: tuple[Comparison, ...] = ()
    class_accuracy: ClassAccuracy | None = None
    measured: tuple[int, int | None] | None = None
    confusion: Confusion | None = None
    worst_classes: tuple[WorstClass, ...] = ()
    precision: PrecisionByClass | None = None
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
        warnings=section("warnings", tuple, ()),
        comparison=section("comparison", lambda rows: tuple(Comparison(**row) for row in rows), ()),
        class_accuracy=section("class_accuracy", _class_accuracy, None),
        measured=section("measured", _measured, None),
        confusion=section("confusion", _confusion, None),
        worst_classes=section("worst_classes", lambda rows: tuple(map(_worst_class, rows)), ()),
        precision=section("precision", _precision, None),
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


def _measured(value: Any) -> tuple[int, int | None]:
    return int(value["images"]), None if value.get("of") is None else int(value["of"])


def _confusion(value: Any) -> Confusion:
    classes = tuple(map(str, value["classes"]))
    networks = {
        str(name): tuple(tuple(map(int, row)) for row in rows) for name, rows in value["networks"].items()
    }
    for rows in networks.values():
        _same_length(classes, rows, *rows)
    mistaken = {
        str(name): tuple(
            Mistaken(str(one["label"]), str(one["answer"]), int(one["count"]), int(one["of"])) for one in rows
        )
        for name, rows in value["mistaken"].items()
    }
    return Confusion(classes, networks, mistaken)


def _worst_class(value: Any) -> WorstClass:
    shares = {str(name): float(share) for name, share in value["shares"].items()}
    pictures = tuple(map(_disagreement, value["pictures"]))
    return WorstClass(str(value["class"]), int(value["support"]), shares, pictures)


def _precision(value: Any) -> PrecisionByClass:
    def numbers(values: Any) -> tuple[float | None, ...]:
        return tuple(None if one is None else float(one) for one in values)

    networks = {str(name): one for name, one in value["networks"].items()}
    found = PrecisionByClass(
        classes=tuple(map(str, value["classes"])),
        boxes=tuple(map(int, value["boxes"])),
        sizes={str(name): int(count) for name, count in value["sizes"].items()},
        recalls=tuple(map(float, value["recalls"])),
        ap={name: numbers(one["ap"]) for name, one in networks.items()},
        ap50={name: numbers(one["ap50"]) for name, one in networks.items()},
        curves={
            name: {str(overlap): numbers(curve) for overlap, curve in one["curves"].items()}
            for name, one in networks.items()
        },
    )
    _same_length(found.classes, found.boxes, *found.ap.values(), *found.ap50.values())
    _same_length(found.recalls, *(curve for curves in found.curves.values() for curve in curves.values()))
    return found


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
