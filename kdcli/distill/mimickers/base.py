"""The `base` method: each of its losses over the (student, teacher) pairs of each teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.build_terms import build_term, standardization_of, way_out
from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.mimicker import Compared, MimicContext, Mimicker, Requirements
from kdcli.distill.taps import Feature, View, tapped
from kdcli.distill.teacher import is_logits
from kdcli.distill.terms import Term, binding_of, requirements_of_losses, sides_of
from kdcli.errors import Findings, SpecError
from kdcli.losses import loss_of
from kdcli.losses.parts import teacher_weights
from kdcli.spec.schema import Job, LossSpec
from kdcli.spec.tables import Method


class BaseMimicker(Mimicker):
    """Any losses of the table over the tapped pairs; by default `loss`, l2_loss with feat_norm and batch_mean.

    By United-Perception's rule a loss of the spec that is called `loss`, of type l2_loss, takes these kwargs where its
    own don't say; the run says so.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["base"]
    weighs_teachers: ClassVar[bool] = True

    @classmethod
    def requirements_of(cls, job: Job) -> Requirements:
        """What the losses' signatures ask for."""
        requirements = requirements_of_losses(cls.losses_of(job))
        if any(standardization_of(job, loss) is not None for loss in cls.losses_of(job).values()):
            requirements |= Requirements(prepare=True)
        if job.teacher_weighting != "average":
            requirements |= Requirements(teacher_outputs=frozenset({"logits"}), batch=frozenset({"labels"}))
        return requirements

    def __init__(self, context: MimicContext) -> None:
        super().__init__(context)
        self.weighting = weighting_of(context, self.losses_of(context.job).values())
        student_sides = sides_of(context.student, self.student_taps)
        wrong = Findings()
        for name, loss in self.losses_of(context.job).items():
            if binding_of(loss_of(loss.type)).uses_teacher:
                for teacher, view in context.teachers.items():
                    with wrong.part():
                        teacher_sides = sides_of(view, self.teacher_taps[teacher])
                        self.terms[f"{teacher}:{name}"] = build_term(
                            context, name, loss, teacher, student_sides, teacher_sides
                        )
            else:
                with wrong.part():
                    self.terms[name] = build_term(context, name, loss, None, student_sides)
        wrong.raise_errors()
        self.ends = ends_of(context, self.terms)

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The tapped features of each teacher and loss; of a loss that reads no feature none."""
        weights: dict[str, Tensor] = {}
        if self.weighting is not None:
            logits = [view.outputs["logits"] for view in teachers.values()]
            weights = dict(zip(teachers, self.weighting(logits, batch.get("labels")), strict=True))
        for key, term in self.terms.items():
            assert isinstance(term, Term)
            student_features: list[Feature] = []
            teacher_features: list[Feature] = []
            if term.binding.uses_features and term.teacher is not None:
                teacher_features = tapped(teachers[term.teacher], self.teacher_taps[term.teacher])
            # A loss that reads the teacher alone is in force where no student runs.
            if "student" in term.binding.inputs:
                student_features = tapped(student, self.student_taps)
            share = None if term.teacher is None else weights.get(term.teacher)
            yield key, Compared(students=student_features, teachers=teacher_features, teacher_weights=share)

    @property
    def reads_student(self) -> bool:
        """False for a job of losses that learn from the teacher alone (ft_paraphrase)."""
        return any(isinstance(term, Term) and term.binding.uses_student for term in self.terms.values())

    def student_end(self) -> tuple[str, nn.Module] | None:
        """What a loss puts in the place of the student's classifier (`simkd`)."""
        return self.ends[0] if self.ends else None

    def inherit(self, earlier: Sequence[Mimicker]) -> list[str]:
        """Hand each loss that starts from another (`ft`) what an earlier stage trained on the same teacher layer."""
        warnings = []
        before = [t for mimicker in earlier for t in mimicker.modules() if isinstance(t, Term)]
        for term in self.terms.values():
            assert isinstance(term, Term)
            if term.record.takes_over is None:
                continue
            for index, (pair, call) in enumerate(zip(term.pairs, term.stateful, strict=False)):
                assert pair.teacher is not None
                same = [found for other in before if (found := other.call_on(term, index)) is not None]
                if not call.inherit(same):
                    warnings.append(
                        f"{self.job_name}: `{term.loss_type}` finds nothing that `{term.record.takes_over}` trained on "
                        f"`{pair.teacher.name}` of {term.teacher}, and starts at random: "
                        f"let a stage with `{term.record.takes_over}` on the same layer come first"
                    )
        return warnings

    @property
    def images_to_prepare(self) -> int | None:
        """As many as standardising a teacher's features takes; None where a loss of its own asks for all."""
        terms = [term for term in self.terms.values() if isinstance(term, Term)]
        if any(term.record.prepares for term in terms):
            return None
        return max((one.images for term in terms for one in term.standardizers), default=0)

    def prepare(self, teachers: Mapping[str, View], batch: Mapping[str, Any]) -> None:
        """Hand one batch to every loss that prepares itself, and to what standardises a teacher's features."""
        for term in self.terms.values():
            assert isinstance(term, Term)
            for pair, standardizer in zip(term.pairs, term.standardizers, strict=False):
                assert term.teacher is not None and pair.teacher is not None
                standardizer.prepare(pair.teacher.of(teachers[term.teacher]))
            for pair, call in zip(term.pairs, term.stateful if term.record.prepares else (), strict=False):
                assert term.teacher is not None and pair.teacher is not None
                call.prepare(pair.teacher.of(teachers[term.teacher]), batch["labels"])

    def prepared(self) -> None:
        """Close the pass for every loss that prepares itself, and make statistics of what was shown."""
        for term in self.terms.values():
            assert isinstance(term, Term)
            for standardizer in term.standardizers:
                standardizer.prepared()
            for call in term.stateful:
                call.prepared()


def ends_of(context: MimicContext, terms: nn.ModuleDict) -> list[tuple[str, nn.Module]]:
    """The new ends that losses give the student (`simkd`): the layer that each follows, and its module.

    Raises SpecError KD449 where there is more than one.
    """
    ends = []
    for term in terms.values():
        assert isinstance(term, Term)
        for pair, call in zip(term.pairs, term.stateful, strict=False):
            end = call.student_end()
            if end is not None:
                ends.append((pair.student.name, end))
                if len(ends) > 1:
                    raise SpecError.at(
                        (*context.path, "student", "mimic_name"),
                        "KD449",
                        f"`{term.loss_type}` replaces the student's classifier, and it has only one",
                        "name one layer and one teacher in the job",
                    )
    return ends


def weighting_of(
    context: MimicContext, losses: Iterable[LossSpec]
) -> Callable[[Sequence[Tensor], Tensor | None], Tensor] | None:
    """The function of `teacher_weighting`, which weighs teachers sample by sample; None where all count alike.

    Raises SpecError KD453 where a loss of the job can't weigh samples, KD470 where a teacher's logits are
    not of the data's classes.
    """
    name = context.job.teacher_weighting
    if name == "average" or len(context.job.teachers) < 2:
        return None
    for loss in losses:
        if "teacher_weights" not in binding_of(loss_of(loss.type)).inputs:
            raise SpecError.at(
                (*context.path, "teacher_weighting"),
                "KD453",
                f"`{loss.type}` can't weigh its samples by teacher",
                "use `teacher_weighting: average`, or a loss such as kd_loss",
            )
    for teacher, view in context.teachers.items():
        logits = view.outputs.get("logits")
        if is_logits(logits) and context.num_classes and logits.shape[1] != context.num_classes:
            raise SpecError.at(
                (*context.path, "teacher_weighting"),
                "KD470",
                f"`teacher_weighting: {name}` weighs each teacher by its logits, and {teacher} gives "
                f"{logits.shape[1]} of them for the data's {context.num_classes} classes",
                way_out(context, teacher, context.num_classes, logits.shape[1]),
            )
    weights: Callable[[Sequence[Tensor], Tensor | None], Tensor] = getattr(teacher_weights, name)
    return weights
