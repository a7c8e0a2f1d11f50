"""How a name in the spec maps to code: a 'module:attribute' string that nobody imports too early.

A task has a record beside its code: what the rules of a spec ask of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """What one name of a table stands for.

    path: 'package.module:attribute'. preset: keyword arguments that the name itself fixes
    (resnet18 is ResNet with depth 18); the user cannot give them. own: whether it is a plugin's.
    """

    path: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.path.partition(":")
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found


Table = Mapping[str, Target]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task.

    target: its implementation (kdcli.tasks.task.Task). datasets: types of data sets that hold its truth.
    words: parts of `runtime.task_names` that name it. not_compiled, not_cached: why its networks can't be
    compiled, and why what its teachers show can't be cached; None where they can.
    """

    target: Target
    datasets: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    not_compiled: str | None = None
    not_cached: str | None = None


def task_of(records: Mapping[str, TaskRecord], task_names: str | None, dataset: str | None) -> str:
    """The name of the task that `runtime.task_names` or else the training data's type says; else the first.

    dataset: the type; None where there is no data.
    """
    words = task_names or ""
    named = [name for name, record in records.items() if any(word in words for word in record.words)]
    meant = [name for name, record in records.items() if dataset in record.datasets]
    return (named or meant or list(records))[0]
