"""The task of a spec, ready to be asked."""

from __future__ import annotations

import inspect
from typing import Any, cast

from kdcli.data import EVALUATORS
from kdcli.spec.places import HERE, Places
from kdcli.spec.plugins import is_own, lookup
from kdcli.spec.schema import DataPart, Runtime, Spec
from kdcli.spec.tables import task_of
from kdcli.tasks import TASKS
from kdcli.tasks.task import Task


def build_task(spec: Spec, places: Places = HERE) -> Task:
    """What `runtime.task_names` and the data's type say, with the arguments of the test data's evaluator.

    An evaluator of one's own (kdcli.tasks.metric) measures beside the task's metrics.

    places: where the files among these are looked up.
    """
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    if evaluator is not None and is_own(evaluator.type):
        from kdcli.tasks.metric import EVALUATOR, WithMetric

        path = (*EVALUATOR, "type")
        target = lookup(EVALUATORS, evaluator.type, path=path, code="KD501", what="evaluator")
        task = task_for(spec.runtime, spec.dataset.train, {}, places)
        return cast(Task, WithMetric(task, target, evaluator.kwargs, evaluator.type))
    kwargs = {} if evaluator is None else dict(evaluator.kwargs)
    return task_for(spec.runtime, spec.dataset.train, kwargs, places)


def task_for(
    runtime: Runtime, train: DataPart | None, kwargs: dict[str, Any] | None = None, places: Places = HERE
) -> Task:
    """The same of networks alone. train: of the training data; kwargs: of the implementation."""
    record = TASKS[task_of(TASKS, runtime.task_names, None if train is None else train.dataset.type)]
    implementation = record.target.load()
    given = {} if "places" not in inspect.signature(implementation).parameters else {"places": places}
    task: Task = implementation(**(kwargs or {}), **given)
    return task
