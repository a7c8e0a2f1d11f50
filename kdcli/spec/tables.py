"""How a name in the spec maps to code: a 'module:attribute' string that nobody imports too early.

A loss and a task have a record beside their code: what is true of them and can be asked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Target:
    """What one name of a table stands for.

    path: 'package.module:attribute'. preset: keyword arguments that the name itself fixes
    (resnet18 is ResNet with depth 18); the user cannot give them.
    """

    path: str
    preset: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.path.partition(":")
        return getattr(import_module(module), attribute)


Table = Mapping[str, Target]

Kind = Literal["logit", "feature", "relational", "teacher-free"]
Layout = Literal["logits", "vector", "map", "tokens", "any"]
Place = Literal["logits", "pooled vector", "middle stage", "last stage", "stages", "before ReLU"]
"""Where a layer lies in a network of three stages; `before ReLU`: what goes into the last ReLU of each stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss(Target):
    """One loss: where its code is, and what is true of it that its signature does not say."""

    kind: Kind
    """What it compares: logits, features, how the samples of a batch relate, or nothing of a teacher."""
    weight: float = 1.0
    """What it is multiplied by where the spec gives no `loss_weight`: the authors' own choice."""
    takes: Layout = "any"
    """The only layout of a feature that it accepts; `any`: several, which its own checks tell apart."""
    unlike_shapes: bool = False
    """Takes features of unlike shapes without an adapter, though it is not made from their shapes."""
    before_relu: bool = False
    """Takes what goes into a ReLU, of both networks."""
    softened: bool = False
    """Its `T` softens a distribution: `temperature` of a job is meant for it."""
    whole_list: bool = False
    """Takes the features of a job as two lists, instead of pair by pair."""
    mean_over_pairs: bool = False
    """Several pairs are averaged, as in United-Perception; else they are added up."""
    divides_by_mask: bool = False
    """Divides by the sum of the mask over all elements, unless `batch_mean: true`."""
    rectifies: bool = False
    """Passes both sides through a ReLU first: negative values are lost."""
    trains_student: bool = True
    """False where it learns from the teacher alone."""
    replaces_end: bool = False
    """Gives the student another end, from the tapped map to logits (`StatefulLoss.student_end`)."""
    prepares: bool = False
    """Has a pass over the training data before it trains (`StatefulLoss.prepare`)."""
    takes_over: str | None = None
    """The loss of an earlier stage that trains what this one starts from (`StatefulLoss.inherit`)."""
    example: tuple[Place, ...] = ()
    """The layers that the block of `kdcli methods` names; none: `logits`, or `last stage` for a feature."""
    teacher_example: tuple[Place, ...] = ()
    """The teacher's layers in that block, where they are others than the student's."""


LossTable = Mapping[str, Loss]


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
