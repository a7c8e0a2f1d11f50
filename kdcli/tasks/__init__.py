"""What differs by task: metrics, predictions, chance; torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target

TASKS: dict[str, Target] = {
    "classification": Target("kdcli.tasks.classification.task:Classification"),
    "detection": Target("kdcli.tasks.detection.task:Detection"),
}
