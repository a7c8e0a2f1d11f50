"""Feature maps of student and teacher side by side, as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdcli.analysis.evaluated_networks import EvaluatedNetwork
from kdcli.data.facts import DataFacts
from kdcli.distill.taps import Taps
from kdcli.spec.schema import Spec
from kdcli.tasks.pictures import image_uri, map_uri
from kdcli.training.wiring import jobs_of

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
            theirs = job.teachers[teacher.name].mimic_name
            ours = _tapped(student, job.student.mimic_name, shown)
            features = _tapped(teacher, theirs, shown)
            for student_tap, teacher_tap in list(zip(job.student.mimic_name, theirs, strict=False)):
                rows = []
                for index in range(len(shown["image"])):
                    pair = [ours[student_tap], features[teacher_tap]]
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
    contender: EvaluatedNetwork, taps: tuple[str, ...], batch: Mapping[str, Any]
) -> Mapping[str, Any]:
    def run(view: Callable[[Mapping[str, Any]], Any]) -> Any:
        pixels = contender.pixels
        return view(batch if pixels is None else {**batch, "image": pixels(batch["image"])})

    with torch.no_grad(), Taps(contender.net, taps) as tapped:
        unread = run(tapped.learn).channels_last
        features: Mapping[str, Any] = run(tapped.view).features
        return {name: None if name in unread else feature for name, feature in features.items()}


def _of_distinct_classes(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A few images of the batch, of as many classes as possible."""
    labels = batch["labels"].tolist()
    first = {label: index for index, label in reversed(list(enumerate(labels)))}
    chosen = sorted(first.values())[:PAIR_IMAGES]
    chosen += [index for index in range(len(labels)) if index not in chosen][: PAIR_IMAGES - len(chosen)]
    return {
        name: value[sorted(chosen)] if isinstance(value, Tensor) else value for name, value in batch.items()
    }
