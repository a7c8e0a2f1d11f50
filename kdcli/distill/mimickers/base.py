"""The `base` method: each of its losses over the (student, teacher) pairs of each teacher."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.binding import binding_of
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View
from kdcli.distill.terms import Term
from kdcli.errors import Findings
from kdcli.errors import SpecError
from kdcli.losses import LOSSES
from kdcli.losses import teacher_weights
from kdcli.spec.schema import Job, LossSpec


class BaseMimicker(Mimicker):
    """Any losses of the table over the tapped pairs; `loss` alone, l2_loss of row-normalised features, by default."""

    LOSSES: ClassVar[Mapping[str, LossSpec]] = {
        "loss": LossSpec(type="l2_loss", kwargs={"feat_norm": True, "batch_mean": True})
    }
    EXTRA_LOSSES: ClassVar[bool] = True

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """What the losses' signatures ask for."""
        needs = Needs()
        for loss in cls.losses_of(job).values():
            needs |= binding_of(LOSSES[loss.type].load()).needs
        if job.teacher_weighting != "average":
            needs |= Needs(teacher_outputs=frozenset({"logits"}), batch=frozenset({"labels"}))
        return needs

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.weighting = weighting_of(setting)
        self.terms = nn.ModuleDict()
        wrong = Findings()
        for name, loss in self.losses_of(setting.job).items():
            if binding_of(LOSSES[loss.type].load()).uses_teacher:
                for teacher in setting.job.teachers:
                    with wrong.part():
                        self.terms[f"{teacher}:{name}"] = Term(setting, name, loss, teacher)
            else:
                with wrong.part():
                    self.terms[name] = Term(setting, name, loss, None)
        wrong.raise_errors()

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        clock: Clock,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """`<teacher>.<loss>` for each teacher and loss; `<loss>` for a teacher-free one."""
        weights: dict[str, Tensor] = {}
        if self.weighting is not None:
            logits = [view.outputs["logits"] for view in teachers.values()]
            weights = dict(zip(teachers, self.weighting(logits, batch["labels"]), strict=True))
        losses = {}
        for key, term in self.terms.items():
            assert isinstance(term, Term)
            if term.name in wanted:
                view = None if term.teacher is None else teachers[term.teacher]
                share = None if term.teacher is None else weights.get(term.teacher)
                losses[key.replace(":", ".")] = term(student, view, batch, clock, teacher_weights=share)
        return losses

    def prepare(self, teachers: Mapping[str, View], batch: Mapping[str, Any]) -> None:
        """Hand one batch to every loss that prepares itself."""
        for term in self.terms.values():
            assert isinstance(term, Term)
            for index, call in enumerate(term.calls):
                if hasattr(call, "prepare"):
                    assert term.teacher is not None
                    call.prepare(teachers[term.teacher].features[term.teacher_taps[index]], batch["labels"])

    def prepared(self) -> None:
        """Close the pass for every loss that prepares itself."""
        for term in self.terms.values():
            assert isinstance(term, Term)
            for call in term.calls:
                if hasattr(call, "prepared"):
                    call.prepared()


def weighting_of(setting: Setting) -> Callable[[Sequence[Tensor], Tensor], Tensor] | None:
    """How much each teacher counts for each sample; None where all count alike.

    Raises SpecError KD438 where a loss of the job can't weigh samples.
    """
    name = setting.job.teacher_weighting
    if name == "average" or len(setting.job.teachers) < 2:
        return None
    for loss in BaseMimicker.losses_of(setting.job).values():
        if "teacher_weights" not in binding_of(LOSSES[loss.type].load()).inputs:
            raise SpecError.at(
                (*setting.path, "teacher_weighting"),
                "KD438",
                f"`{loss.type}` can't weigh its samples by teacher",
                "use `teacher_weighting: average`, or a loss such as kd_loss",
            )
    weights: Callable[[Sequence[Tensor], Tensor], Tensor] = getattr(teacher_weights, name)
    return weights
