"""FRS: mimic neck maps and scores where the teacher sees something."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.binding import binding_of
from kdcli.distill.mimickers import MIMICKERS, FrsOptions
from kdcli.distill.mimickers.detectors import score_maps, tapped, term_over
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.terms import Term
from kdcli.errors import SpecError
from kdcli.losses import loss_of
from kdcli.spec.schema import Job, LossSpec
from kdcli.spec.tables import Method


class FrsMimicker(Mimicker):
    """`neck_loss` (l2) on the tapped maps and `pred_loss` (bce) on the score maps, both weighted by a mask.

    The mask is, at each position of each level, the greatest of the teacher's sigmoid scores there. Levels
    are added up. pred_loss compares the student's scores with the teacher's, from their logits. Both are
    divided by the sum of the mask over positions, as in United-Perception, whose weights fit; with
    `mask_count: elements` by its sum over all channels, as `l2_loss` and `bce_loss` divide elsewhere: 256
    channels weaken neck_loss 256 times. (`batch_mean: true` divides by the batch either way.) With
    `pred_gradient: false`, the silence of United-Perception, pred_loss is logged and moves nothing.
    Source: "Distilling Object Detectors with Feature Richness", arXiv:2111.00674.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["FRS"]
    options: FrsOptions

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """The class logits of every level, of both sides."""
        return Needs(student_outputs=frozenset({"preds"}), teacher_outputs=frozenset({"preds"}))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        losses = self.losses_of(setting.job)
        self.by_positions = {
            name: self.options.mask_count == "positions" and _divides_by_mask(loss)
            for name, loss in losses.items()
        }
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
        self.compares_logits = "from_logits" in binding_of(loss_of(losses["pred_loss"].type)).keywords
        # Probabilities that are compared know no temperature, and as logits they are compared at 1.
        given = bool(losses["pred_loss"].kwargs.get("from_logits", False))
        self.pred_kwargs = {"from_logits": True, "T": 1.0} if self.compares_logits and not given else {}
        self.teacher_taps = {name: tuple(t.mimic_name) for name, t in setting.job.teachers.items()}
        self.counts = {
            teacher: len(list(tensors_in([view.features[tap] for tap in self.teacher_taps[teacher]])))
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
                taps = self.teacher_taps[teacher]
                maps = list(tensors_in([view.features[tap] for tap in taps]))
                losses[f"{teacher}.neck_loss"] = self._term(teacher, "neck_loss")(
                    student, view, batch, clock, masks=masks, factors=self._factors("neck_loss", maps)
                )
            if "pred_loss" in wanted:
                own = score_maps(None, student, "the student")[:count]
                if not self.options.pred_gradient:
                    own = [level.detach() for level in own]
                losses[f"{teacher}.pred_loss"] = self._term(teacher, "pred_loss")(
                    student,
                    view,
                    batch,
                    clock,
                    students=self._scores(own),
                    teachers=self._scores(logits),
                    masks=masks,
                    factors=self._factors("pred_loss", logits),
                    kwargs=self.pred_kwargs,
                )
        return losses

    @property
    def logged_only(self) -> Mapping[str, str]:
        """pred_loss with `pred_gradient: false`."""
        return {} if self.options.pred_gradient else {"pred_loss": "`pred_gradient: false`"}

    def _scores(self, logits: list[Tensor]) -> list[Tensor]:
        return logits if self.compares_logits else [level.sigmoid() for level in logits]

    def _factors(self, loss: str, maps: Sequence[Tensor]) -> list[float] | None:
        """What makes of a mean over elements one over positions: the channels of each level.

        maps: of the teacher; those of an adapted student have as many channels.
        """
        return [float(level.shape[1]) for level in maps] if self.by_positions[loss] else None

    def _term(self, teacher: str, name: str) -> Term:
        term = self.terms[f"{teacher}:{name}"]
        assert isinstance(term, Term)
        return term


def _divides_by_mask(loss: LossSpec) -> bool:
    return loss_of(loss.type).divides_by_mask and not loss.kwargs.get("batch_mean", False)
