"""What differs by task: metrics, predictions, chance; torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target, TaskRecord

TASKS: dict[str, TaskRecord] = {
    "classification": TaskRecord(target=Target("kdcli.tasks.classification.task:Classification")),
    "detection": TaskRecord(
        target=Target("kdcli.tasks.detection.task:Detection"),
        datasets=frozenset({"coco"}),
        words=("det",),
        not_compiled="a detector can't be compiled: how much it computes depends on the boxes it finds",
        not_cached="images of a detector are padded to the largest of their batch",
    ),
}
"""A spec that names no task, with data that is no task's own, is of the first one."""
