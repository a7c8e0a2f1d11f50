"""FRS: mimic neck maps and scores where the teacher sees something."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.mimickers.detectors import score_maps, tapped, term_over
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.terms import Term
from kdcli.errors import SpecError
from kdcli.spec.schema import Job, LossSpec


class FrsMimicker(Mimicker):
    """`neck_loss` (l2) on the tapped maps and `pred_loss` (bce) on the score maps, both weighted by a mask.

    The mask is, at each position of each level, the greatest of the teacher's sigmoid scores there. Levels
    are added up. pred_loss compares the student's scores with the teacher's, and its gradient is the
    student's. Both are means over the masked elements. United-Perception divides by the mask's sum over one
    channel: its weight of neck_loss is as many times stronger as the maps have channels (0.002 on 256 is 0.5
    here), that of pred_loss as the score maps have.
    Source: "Distilling Object Detectors with Feature Richness", arXiv:2111.00674.
    """

    LOSSES: ClassVar[Mapping[str, LossSpec]] = {
        "neck_loss": LossSpec(type="l2_loss", kwargs={"feat_norm": False, "batch_mean": False}),
        "pred_loss": LossSpec(type="bce_loss", kwargs={"T": 1.0, "batch_mean": False}),
    }
    OPTIONS: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """The class logits of every level, of both sides."""
        return Needs(student_outputs=frozenset({"preds"}), teacher_outputs=frozenset({"preds"}))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        losses = self.losses_of(setting.job)
        own = score_maps(setting, setting.student, "the student")
        names = setting.job.student.mimic_name
        self.terms = nn.ModuleDict()
        for teacher, view in setting.teachers.items():
            theirs = score_maps(setting, view, teacher)
            taps = setting.job.teachers[teacher].mimic_name
            count = len(list(tensors_in([view.features[tap] for tap in taps])))
            if not count <= min(len(own), len(theirs)):
                raise SpecError.at(
                    (*setting.path, "teachers", teacher, "mimic_name"),
                    "KD463",
                    f"{count} layers, and the heads have {len(own)} and {len(theirs)} levels",
                    "name one neck layer for each level, from the finest on",
                )
            self.terms[f"{teacher}:neck_loss"] = term_over(
                setting,
                "neck_loss",
                losses["neck_loss"],
                teacher,
                tapped(setting.student, names),
                tapped(view, taps),
            )
            self.terms[f"{teacher}:pred_loss"] = term_over(
                setting,
                "pred_loss",
                losses["pred_loss"],
                teacher,
                {f"preds[{level}]": scores for level, scores in enumerate(own[:count])},
                {f"preds[{level}]": scores for level, scores in enumerate(theirs[:count])},
                adapted=False,
            )
        self.from_logits = bool(losses["pred_loss"].kwargs.get("from_logits", False))
        self.counts = {
            teacher: len(
                list(tensors_in([view.features[t] for t in setting.job.teachers[teacher].mimic_name]))
            )
            for teacher, view in setting.teachers.items()
        }

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        clock: Clock,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """`<teacher>.neck_loss` and `<teacher>.pred_loss`."""
        losses = {}
        for teacher, count in self.counts.items():
            view = teachers[teacher]
            logits = [level.detach() for level in score_maps(None, view, teacher)[:count]]
            masks = [level.sigmoid().amax(dim=1, keepdim=True) for level in logits]
            if "neck_loss" in wanted:
                losses[f"{teacher}.neck_loss"] = self._term(teacher, "neck_loss")(
                    student, view, batch, clock, masks=masks
                )
            if "pred_loss" in wanted:
                own = score_maps(None, student, "the student")[:count]
                losses[f"{teacher}.pred_loss"] = self._term(teacher, "pred_loss")(
                    student,
                    view,
                    batch,
                    clock,
                    students=self._scores(own),
                    teachers=self._scores(logits),
                    masks=masks,
                )
        return losses

    def _scores(self, logits: list[Tensor]) -> list[Tensor]:
        return logits if self.from_logits else [level.sigmoid() for level in logits]

    def _term(self, teacher: str, name: str) -> Term:
        term = self.terms[f"{teacher}:{name}"]
        assert isinstance(term, Term)
        return term
