"""What the rules of a spec ask of a task: its name, and what its networks can't."""

from __future__ import annotations

import pytest

from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.tables import Target, TaskRecord, task_of
from kdcli.tasks import TASKS
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.detection.task import Detection
from kdcli.tasks.task import Task
from tests.training.runs import SPEC, spec_of

DETECTS = "runtime.task_names=kd_det"
NOT_COMPILED = "a detector can't be compiled: how much it computes depends on the boxes it finds"
NOT_CACHED = "`teacher0` can't be cached: images of a detector are padded to the largest of their batch"


@pytest.mark.parametrize(
    ("task_names", "dataset", "name"),
    [
        (None, "fake", "classification"),
        (None, None, "classification"),
        ("kd_cls", "fake", "classification"),
        (None, "coco", "detection"),
        ("kd_det", "fake", "detection"),
        ("kd_cls", "coco", "detection"),
    ],
)
def test_which_task_a_spec_is_of(task_names: str | None, dataset: str | None, name: str) -> None:
    assert task_of(TASKS, task_names, dataset) == name


def test_a_name_comes_before_the_data() -> None:
    target = Target("nowhere:Nothing")
    records = {
        "first": TaskRecord(target=target),
        "by_data": TaskRecord(target=target, datasets=frozenset({"numbers"})),
        "by_name": TaskRecord(target=target, words=("num",)),
    }
    assert task_of(records, "kd_num", "numbers") == "by_name"
    assert task_of(records, "kd", "numbers") == "by_data"


def test_a_detector_is_neither_compiled_nor_cached() -> None:
    changes = (DETECTS, "runtime.compile=true", "mimic.teacher0.cache={}")
    found = {d.code: d for d in check_references(spec_of(SPEC, *changes), tables()) if d.severity == "error"}
    assert set(found) == {"KD222", "KD550"}
    assert found["KD222"].message == NOT_COMPILED
    assert (found["KD222"].help, found["KD222"].path) == ("leave `compile` out", ("runtime", "compile"))
    assert found["KD550"].message == NOT_CACHED
    assert (found["KD550"].help, found["KD550"].on_key) == ("leave `cache` out", True)


def test_a_classifier_may_be_both() -> None:
    changes = ("runtime.compile=true", "mimic.teacher0.cache={}")
    found = check_references(spec_of(SPEC, *changes), tables())
    assert [d.code for d in found if d.severity == "error"] == []


def test_each_answers_what_a_task_is_asked() -> None:
    tasks: list[Task] = [Classification(), Detection()]
    assert [task.name for task in tasks] == list(TASKS)
