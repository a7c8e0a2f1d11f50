"""A batch of made-up values in the shapes of the data, for checks."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdcli.data.facts import DataFacts
from kdcli.spec.schema import Spec
from kdcli.tasks.task import Task


def sample_of(task: Task, spec: Spec, facts: DataFacts, channels: int = 3) -> dict[str, Any]:
    """A made-up batch in the shapes of a spec's training data; channels: where the data does not say."""
    modules = [*spec.net, *(module for teacher in spec.teachers.values() for module in teacher)]
    return task.sample(
        spec.dataset.train, facts, channels=channels, modules=modules, aligned=spec.runtime.aligned
    )


def channels_of(net: nn.Module) -> int:
    """How many channels the network's first convolution reads; 3 without one."""
    return next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 3)
