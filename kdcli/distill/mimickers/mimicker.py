"""A mimic method: what it is built from, what it requires and compares, and the losses that it computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcli.distill.taps import Feature, View, tensors_in
from kdcli.distill.teacher import Labels
from kdcli.errors import RunError, SpecError, SpecPath
from kdcli.spec.schema import Job, LossSpec
from kdcli.spec.tables import Loss, Method

Scaling = Literal["none", "image", "place"]
"""How a feature is scaled before its mean is taken: see `kdcli.distill.terms.constant_answer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """Where the run is: finished optimizer steps of the run and of its stage, and the epoch so far.

    epoch counts on between whole numbers: 2.5 is half way through the third.
    """

    step: int = 0
    stage_step: int = 0
    epoch: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a job reads, beside its taps: known before anything runs.

    student_outputs, teacher_outputs: named outputs of the networks. batch: fields of the batch.
    facts: of the run. prepare: a pass over the training data comes first.
    """

    student_outputs: frozenset[str] = frozenset()
    teacher_outputs: frozenset[str] = frozenset()
    batch: frozenset[str] = frozenset()
    facts: frozenset[str] = frozenset()
    prepare: bool = False

    def __or__(self, other: Requirements) -> Requirements:
        return Requirements(
            student_outputs=self.student_outputs | other.student_outputs,
            teacher_outputs=self.teacher_outputs | other.teacher_outputs,
            batch=self.batch | other.batch,
            facts=self.facts | other.facts,
            prepare=self.prepare or other.prepare,
        )


@dataclass(frozen=True, kw_only=True)
class MimicContext:
    """What a mimicker is built from: the job, the real features of one batch, facts of the data.

    teacher_classifier(teacher) and teacher_norm(teacher, tap) return frozen copies of modules;
    teacher_module(teacher, path) and student_module(path) return the live ones. maker(teacher, tap, kinds):
    the path of the layer of these kinds that made a tapped feature (of the student where teacher is None),
    with `[i]` where that layer runs several times; None where none of them did. labels: what is known of the
    teachers' classes; the views show the data's already. sample_labels [N]: the class of each training sample;
    None where only its batches say it. nearest_map(teacher, tap): a help line that names a layer near a tap that gives
    a map. before_layouts: the run is continued from a checkpoint of before kdcli knew layouts, and keeps its meaning:
    `adapter: auto` has its norm before every loss, and a mean over tokens takes in the prefix.
    """

    job: Job
    name: str
    path: SpecPath
    student: View
    teachers: Mapping[str, View]
    num_samples: int
    num_classes: int
    teacher_classifier: Callable[[str], nn.Module]
    teacher_norm: Callable[[str, str], nn.Module]
    teacher_module: Callable[[str, str], nn.Module]
    student_module: Callable[[str], nn.Module]
    maker: Callable[[str | None, str, tuple[type[nn.Module], ...]], str | None] = lambda *_: None
    labels: Mapping[str, Labels] = field(default_factory=dict)
    sample_labels: NDArray[np.int64] | None = None
    nearest_map: Callable[[str | None, str], str] = lambda *_: "name a layer that gives [B, C, H, W]"
    before_layouts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What one term compares in one step.

    students, teachers: the features of its pairs, in order; of a loss that reads one network alone only
    that one's. masks: one for each pair. teacher_weights [B]: how much each sample of this teacher counts.
    divisor, share: the loss is divided by the one, then multiplied by the other.
    """

    students: Sequence[Feature] = ()
    teachers: Sequence[Feature] = ()
    masks: Sequence[Tensor] | None = None
    teacher_weights: Tensor | None = None
    divisor: float | None = None
    share: Tensor | None = None


class Mimicker(nn.Module):
    """One method applied by one job.

    kdcli_record: what the method says of itself; of kdcli's own methods the record in MIMICKERS.
    options: those of this job, of the class that the record names. weighs_teachers: whether `teacher_weighting`
    of a job is meant for it.
    """

    kdcli_record: ClassVar[Method] = Method()
    weighs_teachers: ClassVar[bool] = False
    options: Any

    @classmethod
    def losses_of(cls, job: Job) -> dict[str, LossSpec]:
        """Every loss of the job with its defaults filled in."""
        own = {
            name: LossSpec(type=loss.type, kwargs=dict(loss.kwargs))
            for name, loss in cls.kdcli_record.losses.items()
        }
        merged = {} if cls.kdcli_record.extra_losses and job.losses else dict(own)
        for name, given in job.losses.items():
            default = own.get(name)
            same = default is not None and default.type == given.type
            kwargs = {**default.kwargs, **given.kwargs} if same and default is not None else given.kwargs
            merged[name] = LossSpec(**{**dict(given), "kwargs": kwargs})
        return merged

    @classmethod
    def requirements_of(cls, job: Job) -> Requirements:
        """What the method reads beside its taps, from the job alone; its losses say it where this is not overridden."""
        return Requirements()

    def __init__(self, context: MimicContext) -> None:
        super().__init__()
        self.job_name = context.name
        self.job_path = context.path
        weighting = context.job.teacher_weighting
        if weighting != "average" and not self.weighs_teachers:
            raise SpecError.at(
                (*context.path, "teacher_weighting"),
                "KD453",
                f"`teacher_weighting: {weighting}` does nothing here: "
                f"`{context.job.mimic_ins_type}` weighs no teachers",
                "leave it out, or use the `base` method",
            )
        self.options = self.kdcli_record.options_of(context.job.options)
        self.terms = nn.ModuleDict()
        self.constants: dict[str, Tensor] | None = None
        """Takes what a constant answer costs, by the names of the losses; None where nobody asks."""
        self.student_taps = tuple(context.job.student.mimic_name)
        self.teacher_taps = {name: tuple(t.mimic_name) for name, t in context.job.teachers.items()}

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """What each term compares in a step, by its key among `terms`: `<teacher>:<loss>` or `<loss>`."""
        raise NotImplementedError(type(self).__name__)

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        step_info: StepInfo,
        in_force: Collection[str],
    ) -> dict[str, Tensor]:
        """The losses by `<teacher>.<loss>` (`<loss>` where no teacher is involved), before the job's weight.

        in_force: the losses in force; no other is computed.
        """
        losses: dict[str, Tensor] = {}
        for key, compared in self.features(student, teachers, batch):
            teacher, _, name = key.rpartition(":")
            if name not in in_force:
                continue
            if key.replace(":", ".") in losses:
                message = f"`features` of the method gives `{key}` twice: one of the two losses would be lost"
                help = "give all maps of a loss at once, as lists in one `Compared`"
                raise RunError.of("KD437", message, help)
            view = teachers[teacher] if teacher else None

            compute = partial(
                self.terms[key],
                compared.students,
                compared.teachers,
                batch,
                step_info,
                compared.masks,
                student_logits=student.outputs.get("logits"),
                teacher_logits=None if view is None else view.outputs.get("logits"),
                teacher_weights=compared.teacher_weights,
            )
            losses[key.replace(":", ".")] = _shared(compute(), compared)
            if self.constants is not None and teacher and self._has_constant(key, compared):
                with torch.no_grad():
                    costs = [_shared(compute(constant=scaling), compared) for scaling in get_args(Scaling)]
                self.constants[key.replace(":", ".")] = torch.stack(costs).min()
        return losses

    def _has_constant(self, key: str, compared: Compared) -> bool:
        """Whether the cost of a constant answer means something: the loss says so, and there are two images."""
        features = list(tensors_in(list(compared.teachers)))
        record: Any = getattr(self.terms[key], "record", None)
        known = isinstance(record, Loss) and record.constant and not self.kdcli_record.peers
        return known and min((len(feature) for feature in features), default=0) > 1

    def term_of(self, name: str) -> Any:
        """The term behind `<teacher>.<loss>` or `<loss>`; None where the method has none by that name."""
        key = name.replace(".", ":")
        return self.terms[key] if key in self.terms else None

    def moves_student(self, name: str) -> bool:
        """Whether a loss (`<teacher>.<loss>`) is meant to move the student, and is not logged alone or a teacher's."""
        if name.rpartition(".")[2] in self.logged_only:
            return False
        term = self.term_of(name)
        return term is None or bool(term.record.trains_student)

    @property
    def reads_student(self) -> bool:
        """Whether any of its losses reads what the student shows."""
        return True

    @property
    def logged_only(self) -> Mapping[str, str]:
        """Losses that are computed and move nothing, with the option that says so."""
        return {}

    def student_end(self) -> tuple[str, nn.Module] | None:
        """The student's layer and what makes logits of its feature, where the method replaces the end."""
        return None

    def inherit(self, earlier: Sequence[Mimicker]) -> list[str]:
        """Take over, as a stage begins, what the jobs of earlier stages have trained; returns warnings."""
        return []

    @property
    def images_to_prepare(self) -> int | None:
        """How many images `prepare` asks for; None: all of the training data."""
        return None

    def prepare(self, teachers: Mapping[str, View], batch: Mapping[str, Any]) -> None:
        """Take in one batch of the pass before training."""

    def prepared(self) -> None:
        """End the pass before training."""


def _shared(loss: Tensor, compared: Compared) -> Tensor:
    """The loss of a term with the divisor and the share of what it compares."""
    if compared.divisor is not None:
        loss = loss / compared.divisor
    return loss if compared.share is None else loss * compared.share
