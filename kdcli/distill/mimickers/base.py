"""The `base` method: each of its losses over the (student, teacher) pairs of each teacher."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.binding import binding_of
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View
from kdcli.distill.terms import Term
from kdcli.errors import Findings
from kdcli.losses import LOSSES
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
        return needs

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
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
        return {
            key.replace(":", "."): term(
                student, None if term.teacher is None else teachers[term.teacher], batch, clock
            )
            for key, term in self.terms.items()
            if isinstance(term, Term) and term.name in wanted
        }

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
