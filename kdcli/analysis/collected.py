"""report_data.json of a run: its networks compared on a bounded part of the test data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.analysis.comparison import row_of
from kdcli.analysis.evaluated_networks import (
    EvaluatedNetwork,
    learnt_classes,
    stated_by_student,
    student_of,
    teacher_of,
    used_teachers,
)
from kdcli.analysis.layers import SMALLEST_BATCH, LayerSimilarity, grams_of, layers_of, stage_layers
from kdcli.data.facts import DataFacts
from kdcli.data.loaders import Loader
from kdcli.disk import write_whole
from kdcli.distill.layouts import Layout, read_as
from kdcli.distill.taps import Taps
from kdcli.errors import KdError
from kdcli.parallel.devices import autocast_for, precisions, to_device
from kdcli.parallel.distributed import Processes
from kdcli.records import REPORT_DATA_VERSION, Notice
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.schema import LayoutSpec, Spec
from kdcli.tasks.mimicry import primary_of
from kdcli.tasks.pictures import image_uri, map_uri
from kdcli.tasks.task import Answered, Forward
from kdcli.training.build import build_data, run_root
from kdcli.training.join_jobs import first_samples, jobs_of, stated_layouts
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import RunFolder
from kdcli.training.sides import Sides

IMAGES, SECONDS = 2000, 30.0
"""How many test images are answered, and how long that may take."""
CKA_IMAGES, CKA_SECONDS, CKA_BATCH = 512, 20.0, 64
LATENCY_SECONDS = 0.2


def write_report_data(
    parsed: ParsedSpec, options: RunOptions, device: torch.device
) -> tuple[Path, list[Notice]]:
    """Collect and write report_data.json into the run's folder; raises KdError where that can't be."""
    data, notices = collect(parsed, options, device)
    path = RunFolder(run_root(parsed)).root / "report_data.json"
    text = json.dumps(data, allow_nan=False) + "\n"
    write_whole(path, text)
    return path, notices


def collect(
    parsed: ParsedSpec, options: RunOptions, device: torch.device
) -> tuple[dict[str, Any], list[Notice]]:
    """The content of report_data.json (see kdcli/report), as far as the task allows; notices: what was left out."""
    spec = parsed.spec
    sides = Sides(spec, options.places, plugins=options.plugins)
    opened = sides.test_of_run(run_root(parsed), stated_by_student(parsed, None))
    loader = build_data(opened, spec, Processes(device=device))
    try:
        data, notices = _collect(parsed, options, device, loader, sides)
    finally:
        loader.close()
    changed = sides.test_changed_since(run_root(parsed))
    if changed is not None:
        notices.append(Notice(message=changed, level="warning"))
        data["warnings"] = [changed]
    return data, notices


def _collect(
    parsed: ParsedSpec, options: RunOptions, device: torch.device, loader: Loader, sides: Sides
) -> tuple[dict[str, Any], list[Notice]]:
    spec, facts, task = parsed.spec, loader.facts, sides.task
    sample = dict(next(loader.batches(0)))
    student, notices = student_of(task, parsed, options, None, sample, facts)
    notices = [notice for notice in notices if notice.level == "warning"]
    contenders = [student]
    for name in used_teachers(spec):
        try:
            contenders.append(teacher_of(task, name, spec, options, learnt_classes(sides, facts)))
        except KdError as error:
            message = f"the report leaves out {name}: {error.diagnostics[0].message}"
            notices.append(Notice(message=message, level="warning"))
    for contender in contenders:
        contender.net.to(device).eval()
    cast = autocast_for(precisions(spec.runtime, device)[0], device)
    scored = student.answers and facts.labels != "none"
    recorded = _recorded(run_root(parsed))
    of_student = recorded.get("student", {})
    primary = task.primary if scored or not of_student else primary_of(of_student)
    data: dict[str, Any] = {"version": REPORT_DATA_VERSION, "primary": primary}
    networks = {contender.name: _forward(contender, cast) for contender in contenders}
    batches = _first(loader, device, IMAGES, SECONDS)
    shown: Answered | None = Answered(sections={})
    if task.report is not None and scored:
        answering = {c.name: networks[c.name] for c in contenders if c.answers}
        shown = task.report.answered(answering, batches, facts)
    if shown is not None:
        data |= {"comparison": _rows(contenders, shown, recorded, sample), **shown.sections}
    if task.report is None or not task.report.layers:
        return data, notices
    for contender in contenders:
        contender.net.to(device)
    batch = to_device(first_samples(sample, CKA_BATCH), device)
    data["features"] = feature_maps(contenders, spec, batch, facts)
    data["cka"] = _similarities(contenders, loader, device, batch)
    return data, notices


def _forward(contender: EvaluatedNetwork, cast: torch.autocast | None) -> Forward:
    """A function from a batch to the network's outputs, in its precision, without gradients."""

    def forward(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.no_grad(), cast or nullcontext():
            return contender.outputs(batch)

    return forward


def _rows(
    contenders: list[EvaluatedNetwork],
    shown: Answered,
    recorded: Mapping[str, dict[str, float]],
    sample: dict[str, Any],
) -> list[dict[str, Any]]:
    """The comparison's rows. recorded: metrics of the whole test data, which replace those of a part of it,
    also those that a report does not measure itself (a metric of one's own).
    """
    rows = []
    for contender in contenders:
        name = contender.name
        metrics = shown.metrics.get(name, {})
        metrics = {**recorded.get(name, {}), **metrics} if shown.whole else recorded.get(name, metrics)
        row = row_of(contender, metrics, shown.agreement.get(name), sample, seconds=LATENCY_SECONDS)
        rows.append(asdict(row))
    return rows


def _first(loader: Loader, device: torch.device, images: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The first batches, until there are so many images or so many seconds have passed."""
    began, seen = time.perf_counter(), 0
    for batch in loader.batches(0):
        yield to_device(dict(batch), device)
        seen += len(batch["image"])
        if seen >= images or time.perf_counter() - began >= seconds:
            return


def _similarities(
    contenders: list[EvaluatedNetwork], loader: Loader, device: torch.device, sample: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Linear CKA of the student's stages with each teacher's, on the first images."""
    student, *teachers = contenders
    if not teachers or len(sample["image"]) < SMALLEST_BATCH:
        return []
    probe = first_samples(sample)
    paths = {
        contender.name: stage_layers(layers_of(contender.net, _pixels(contender, probe)))
        for contender in contenders
    }
    compared = [teacher for teacher in teachers if paths[teacher.name] and paths["student"]]
    sums = {t.name: LayerSimilarity(len(paths["student"]), len(paths[t.name])) for t in compared}
    for batch in _first(loader, device, CKA_IMAGES, CKA_SECONDS):
        for start in range(0, len(batch["image"]), CKA_BATCH):
            part = {k: v[start : start + CKA_BATCH] if isinstance(v, Tensor) else v for k, v in batch.items()}
            if len(part["image"]) < SMALLEST_BATCH:
                continue
            student_grams = grams_of(student.outputs, student.net, paths["student"], part)
            for teacher in compared:
                sums[teacher.name].update(
                    student_grams, grams_of(teacher.outputs, teacher.net, paths[teacher.name], part)
                )
    return [
        {
            "teacher": teacher.name,
            "student_layers": paths["student"],
            "teacher_layers": paths[teacher.name],
            "values": [[round(value, 4) for value in row] for row in sums[teacher.name].values().tolist()],
        }
        for teacher in compared
    ]


def _pixels(contender: EvaluatedNetwork, batch: dict[str, Any]) -> dict[str, Any]:
    return batch if contender.pixels is None else {**batch, "image": contender.pixels(batch["image"])}


def _recorded(root: Path) -> dict[str, dict[str, float]]:
    """The metrics that a finished run measured on all of its test data, by network."""
    try:
        finished = json.loads(RunFolder(root).finished.read_text(encoding="utf-8"))
        return {
            "student": dict(finished["best"]),
            **{name: dict(m) for name, m in finished["teachers"].items()},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


PAIRS, PAIR_IMAGES = 6, 4


def feature_maps(
    contenders: list[EvaluatedNetwork], spec: Spec, batch: Mapping[str, Any], facts: DataFacts
) -> list[dict[str, Any]]:
    """The tapped maps of student and teacher on a few images, for each pair of layers with positions."""
    student, *teachers = contenders
    shown = _of_distinct_classes(batch)
    sections: list[dict[str, Any]] = []
    for job_name, job in jobs_of(spec).items():
        for teacher in teachers:
            if teacher.name not in job.teachers or len(sections) >= PAIRS:
                continue
            teacher_taps = job.teachers[teacher.name].mimic_name
            student_features = _tapped(student, job.student.mimic_name, shown, stated_layouts(spec, None))
            teacher_features = _tapped(teacher, teacher_taps, shown, stated_layouts(spec, teacher.name))
            for student_tap, teacher_tap in list(zip(job.student.mimic_name, teacher_taps, strict=False)):
                rows = []
                for index in range(len(shown["image"])):
                    pair = [student_features[student_tap], teacher_features[teacher_tap]]
                    uris = [map_uri(one[index]) if isinstance(one, Tensor) else None for one in pair]
                    if None not in uris:
                        image = image_uri(shown["image"][index], facts.mean, facts.std)
                        rows.append({"image": image, "student": uris[0], "teacher": uris[1]})
                if rows and len(sections) < PAIRS:
                    sections.append(
                        {
                            "term": f"{job_name}: {', '.join(loss.type for loss in job.losses.values())}",
                            "student_layer": student_tap,
                            "teacher": teacher.name,
                            "teacher_layer": teacher_tap,
                            "rows": rows,
                        }
                    )
    return sections


def _tapped(
    contender: EvaluatedNetwork,
    taps: tuple[str, ...],
    batch: Mapping[str, Any],
    stated: Mapping[str, LayoutSpec],
) -> Mapping[str, Any]:
    def run(view: Callable[[Mapping[str, Any]], Any]) -> Any:
        pixels = contender.pixels
        return view(batch if pixels is None else {**batch, "image": pixels(batch["image"])})

    with torch.no_grad(), Taps(contender.net, taps, stated=stated) as tapped:
        layouts = run(tapped.learn).layouts
        features: Mapping[str, Any] = run(tapped.view).features
        return {name: _as_map(feature, layouts[name]) for name, feature in features.items()}


def _as_map(feature: Any, layouts: Sequence[Layout]) -> Any:
    """A feature as it is drawn: tokens in their grid; None for what has four axes and is no map that is known."""
    if not isinstance(feature, Tensor) or len(layouts) != 1:
        return feature
    if feature.dim() == 4 and layouts[0].kind != "map":
        return None
    return read_as(feature, layouts[0], "grid") if layouts[0].in_grid else feature


def _of_distinct_classes(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A few images of the batch, of as many classes as possible."""
    if "labels" not in batch:
        return first_samples(batch, PAIR_IMAGES)
    # One of several labels is as good as another here.
    labels = batch["labels"].reshape(len(batch["labels"]), -1)[:, 0].tolist()
    first = {label: index for index, label in reversed(list(enumerate(labels)))}
    chosen = sorted(first.values())[:PAIR_IMAGES]
    chosen += [index for index in range(len(labels)) if index not in chosen][: PAIR_IMAGES - len(chosen)]
    return {
        name: value[sorted(chosen)] if isinstance(value, Tensor) else value for name, value in batch.items()
    }
