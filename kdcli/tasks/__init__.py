"""The tasks by name, and the task of a spec: what differs by task is asked of it (tasks/task.py); torch-free."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from kdcli.data import EVALUATORS
from kdcli.spec.places import CLS_FREQ, HERE, Places
from kdcli.spec.plugins import is_own, lookup
from kdcli.spec.schema import DataPart, Runtime, Spec
from kdcli.spec.tables import Target, TaskRecord, task_of

if TYPE_CHECKING:
    from kdcli.tasks.task import Task

TASKS: dict[str, TaskRecord] = {
    "classification": TaskRecord(target=Target("kdcli.tasks.classification.task:Classification")),
    "detection": TaskRecord(
        target=Target("kdcli.tasks.detection.task:Detection"),
        datasets=frozenset({"coco"}),
        words=("det",),
        not_compiled="a detector can't be compiled: how much it computes depends on the boxes it finds",
        not_cached="images of a detector are padded to the largest of their batch",
        not_probed="a probe reads one vector for each image, and a detector has one for each box",
    ),
}
"""A spec that names no task, with data that is no task's own, is of the first one."""


def build_task(spec: Spec, places: Places = HERE) -> Task:
    """The task of a spec, by `runtime.task_names` and its data's type, with the arguments of the test data's evaluator.

    An evaluator of one's own (kdcli.tasks.metric) measures beside the task's metrics.

    places: where the files among these are looked up.
    """
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    if evaluator is not None and is_own(evaluator.type):
        from kdcli.tasks.metric import EVALUATOR, WithMetric

        path = (*EVALUATOR, "type")
        target = lookup(EVALUATORS, evaluator.type, path=path, code="KD501", what="evaluator")
        task = task_for(spec.runtime, spec.dataset.train, {}, places)
        return cast("Task", WithMetric(task, target, evaluator.kwargs, evaluator.type))
    kwargs = {} if evaluator is None else dict(evaluator.kwargs)
    if evaluator is not None and evaluator.type == "imagenet_lt":
        from kdcli.data.evaluators import class_counts, imagenet_lt
        from kdcli.tasks.metric import WithMetric

        lt = imagenet_lt(**kwargs)
        metric = {
            "counts": class_counts(places.find(lt.cls_freq, CLS_FREQ), CLS_FREQ),
            "topk": lt.topk,
            "many_shot_thr": lt.many_shot_thr,
            "low_shot_thr": lt.low_shot_thr,
        }
        task = task_for(spec.runtime, spec.dataset.train, {"topk": lt.topk}, places)
        target = Target("kdcli.tasks.classification.metrics:ShotAccuracy")
        return cast("Task", WithMetric(task, target, metric, evaluator.type))
    return task_for(spec.runtime, spec.dataset.train, kwargs, places)


def task_for(
    runtime: Runtime, train: DataPart | None, kwargs: dict[str, Any] | None = None, places: Places = HERE
) -> Task:
    """The task of networks alone. train: the training data, where there is any; kwargs: of the implementation."""
    record = TASKS[task_of(TASKS, runtime.task_names, None if train is None else train.dataset.type)]
    implementation = record.target.load()
    given = {} if "places" not in inspect.signature(implementation).parameters else {"places": places}
    task: Task = implementation(**(kwargs or {}), **given)
    return task
